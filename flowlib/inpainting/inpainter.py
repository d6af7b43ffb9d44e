"""Fills holes in grey images with a Glow: where model, images and engines meet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from flowlib.images.classifier import Classifier
from flowlib.images.glow import Glow
from flowlib.inpainting.ascent import climb, find_map
from flowlib.inpainting.density import HoleDensity
from flowlib.inpainting.fill import Fill, Problem, Truth
from flowlib.inpainting.refine import add_noise, refine_fills, similar_images
from flowlib.rng import Streams

FIRST_STEPS = 10  # of the MAP ascent, after which the likeliest start goes on alone
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
Tick = Callable[[], object]  # moves a progress bar on


@dataclass(frozen=True)
class FillSettings:
    """How much work goes into a fill: see `find_map`, `refine_fills`, `add_noise`."""

    map_steps: int = 40  # of the MAP ascent
    fills: int = 12  # plausible fills of each image
    similar: int = 5  # similar images for each fill, from which it takes patches
    rounds: int = 7  # at most
    crossovers: int = 8
    ascent: int = 5  # steps in a round
    last_ascent: int = 8


def run_engine(
    density: HoleDensity,
    y: Tensor,
    similar: Tensor,
    streams: Streams,
    settings: FillSettings,
    lr: float = 0.4,
    tick: Tick = lambda: None,
) -> Tensor:
    """Fills y (B, C, D), refined: each is near the top of a mode of the density.

    `similar` and `lr` are those of `refine_fills`. `tick` is called after each round
    and after the last ascent.
    """
    for refined in refine_fills(
        density,
        y,
        similar,
        streams,
        rounds=settings.rounds,
        crossovers=settings.crossovers,
        steps=settings.ascent,
        lr=lr,
    ):
        y = refined
        tick()

    y = climb(density, y, settings.last_ascent, lr)
    tick()
    return y


class Inpainter:
    """Fills holes with a Glow, whose weights stay as they are.

    `references` are complete images of the same kind, uint8 (N, 1, H, W): the training
    images, or samples of the flow. A `classifier`, if given, tells which digit a fill
    is.

    Example:
        >>> from flowlib.files import SHIPPED
        >>> from flowlib.images.datasets import load_images
        >>> from flowlib.images.glow import load_glow
        >>> from flowlib.inpainting.masks import draw_masks
        >>> images = load_images("digits")
        >>> mask = draw_masks("square:4", 2, images.shape, seed=0)
        >>> settings = FillSettings(map_steps=2, fills=2, rounds=1)
        >>> glow = load_glow(SHIPPED / "glow_digits.pt")
        >>> inpainter = Inpainter(glow, images.train, settings=settings)
        >>> fill = inpainter.fill(Problem.cut(images.test[:2], mask, seeds=[0, 1]))
        >>> fill.mean().shape  # grey values in [0, 1]
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        glow: Glow,
        references: Tensor,
        classifier: Classifier | None = None,
        settings: FillSettings | None = None,
    ):
        self.glow = glow
        self.references = references
        self.classifier = classifier
        self.settings = settings or FillSettings()

    def fill(self, problem: Problem, label: str | None = None) -> Fill:
        """Plausible fills of each image and its MAP estimate; a `label` shows a bar."""
        total = self.settings.rounds + 2
        with tqdm(
            total=total,
            desc=label,
            bar_format=BAR,
            disable=label is None,
        ) as bar:
            fill = self.find_fills(problem, bar.update)
            v = self.find_map(problem, self.starts(fill))
            bar.update(total - bar.n)

        fill.map = self.to_levels(v, problem)
        fill.map_log_prob = self.log_prob(v)
        mean, std = self.typical_log_prob
        fill.typical = (fill.log_prob.amax(1) - mean) / std
        if self.classifier:
            fill.digits = self.classifier.find_classes(fill.plausible)
        return fill

    def find_fills(self, problem: Problem, tick: Tick = lambda: None) -> Fill:
        """Plausible fills of the missing pixels; no MAP estimate yet.

        A fill begins as a similar reference image, is refined until the flow finds it
        likely, and gets noise. `tick` is that of `run_engine`.
        """
        density, y, streams = self.refine(problem, tick)
        y = add_noise(density, y, self.widths(density, y), streams)
        return self.to_fill(problem, density.decode(y))

    def to_fill(self, problem: Problem, v: Tensor) -> Fill:
        """The images v (B, C, 1, H, W) as plausible fills; no MAP estimate."""
        return Fill(
            problem,
            self.glow.levels,
            plausible=self.to_levels(v, problem),
            plausible_v=v.cpu(),
            log_prob=self.log_prob(v.flatten(0, 1)).unflatten(0, v.shape[:2]),
        )

    def refine(
        self,
        problem: Problem,
        tick: Tick = lambda: None,
    ) -> tuple[HoleDensity, Tensor, Streams]:
        """Refined fills without noise: their density, y (B, C, D), and random numbers.

        Where in its bin an observed pixel lies, each fill draws for itself, unless
        `problem.observed` says.
        """
        count = self.settings.fills
        seeds = problem.seeds
        observed = problem.observed
        if observed is None:
            many = problem.masked[:, None].repeat_interleave(count, 1)
            observed = self._dequantize(many, seeds, "observed")  # (B, C, 1, H, W)
        density = self._density(observed, problem.mask)

        most = count * self.settings.similar
        similar = similar_images(problem.masked, problem.mask, self.references, most)
        similar = density.encode(self._dequantize(similar, seeds, "donors"))
        streams = Streams(seeds, "fills", similar)  # similar: (B, K, D)
        # In a random order, so that the first fill is no better than the last.
        order = streams.rand(count).argsort(1) % similar.shape[1]  # (B, C)
        y = similar.gather(1, order[..., None].expand(-1, -1, similar.shape[2]))

        y = run_engine(density, y, similar, streams, self.settings, tick=tick)
        return density, y, streams

    def widths(self, density: HoleDensity, y: Tensor) -> Tensor:
        """How far each entry of fills y (B, C, D) can move: `pixel_widths` of each."""
        levels = self.glow.quantize(density.decode(y)).flatten(2)  # (B, C, D)
        return self.pixel_widths[levels.long()]

    def starts(self, fill: Fill) -> Tensor:
        """Guesses for `find_map`, (B, 2, 1, H, W): black, and the likeliest fill."""
        likeliest = fill.log_prob.argmax(1)
        v = fill.plausible_v[torch.arange(len(fill)), likeliest]  # (B, 1, H, W)
        return torch.stack([torch.full_like(v, 0.5 / self.glow.levels), v], 1)

    def find_map(self, problem: Problem, starts: Tensor) -> Tensor:
        """The likeliest fill of each image, v (B, 1, H, W); see `ascent.find_map`.

        All `starts` (B, S, 1, H, W) climb for FIRST_STEPS, then the likeliest goes on
        alone. In squares black overtakes a fill on the way: choosing at once cost 130
        nats (square:14).
        """
        observed = self._dequantize(problem.masked[:, None], problem.seeds, "observed")
        density = self._density(observed, problem.mask)
        first = min(FIRST_STEPS, self.settings.map_steps)
        v = find_map(density, starts.to(self.glow.device), steps=first)
        return find_map(density, v[:, None], steps=self.settings.map_steps - first)

    def truth(self, images: Tensor, seeds: Sequence[int]) -> Truth:
        """The truth of uint8 images (B, 1, H, W), dequantized with its own noise."""
        v = self._dequantize(images[:, None], seeds, "truth")[:, 0]
        return Truth(images / (self.glow.levels - 1), v.cpu(), self.log_prob(v))

    @torch.no_grad()
    def log_prob(self, v: Tensor) -> Tensor:
        """log p(v) as it is reported, nats: (N, 1, H, W) -> (N,), on the CPU.

        The networks run in float32, because bfloat16 would change it by up to 2 nats.
        """
        precision = self.glow.precision
        self.glow.set_precision(torch.float32)
        parts = v.to(self.glow.device).split(100)
        log_p = torch.cat([self.glow.log_prob(part) for part in parts])
        self.glow.set_precision(precision)
        return log_p.cpu()

    @cached_property
    def typical_log_prob(self) -> tuple[float, float]:
        """`measure_log_prob` of the held-out images, if the checkpoint has it.

        Otherwise it is that of the reference images.
        """
        stored = getattr(self.glow, "metrics", {}).get("held_out_log_prob")
        return tuple(stored or self.measure_log_prob(self.references))

    def measure_log_prob(self, images: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of log p(v) over the first 500 images, nats."""
        images = images[:500]
        log_p = self.truth(images, range(len(images))).log_prob
        return log_p.mean().item(), log_p.std().item()

    @cached_property
    def pixel_widths(self) -> Tensor:
        """How far a pixel can move in y before the density changes much: (levels,).

        1 / root mean square of d log p(y) / dy, over the pixels of that level, and of
        levels next to it, in 64 reference images. Black, most of the background, stands
        alone. The brightest strokes are the narrow ones: there most pixels have one of
        two or three levels.
        """
        images = self.references[:64]
        v = self._dequantize(images[:, None], range(len(images)), "widths")
        everything = torch.ones_like(images, dtype=torch.bool)
        density = self._density(v, everything)
        _, grad = density.value_and_grad(density.encode(v))

        levels = self.glow.levels
        level = torch.arange(levels, device=v.device)
        distance = (level[:, None] - level) / (levels / 64)
        near = (-0.5 * distance**2).exp()  # (levels, levels)
        near[0, 1:] = near[1:, 0] = 0

        pixel = images.flatten().long().to(v.device)
        squares = torch.bincount(pixel, grad.square().flatten(), minlength=levels)
        counts = torch.bincount(pixel, minlength=levels).to(grad.dtype)
        return ((near @ squares + 1) / (near @ counts + 1)).rsqrt()

    def to_levels(self, v: Tensor, problem: Problem) -> Tensor:
        """v (B, ..., 1, H, W) as grey levels, with the observed pixels as given."""
        images = self.glow.quantize(v).cpu()
        shape = (len(v), *(1,) * (v.ndim - 4), *v.shape[-3:])
        mask = problem.mask.reshape(shape)
        return torch.where(mask, images, problem.masked.reshape(shape))

    def _dequantize(self, images: Tensor, seeds: Sequence[int], purpose: str) -> Tensor:
        """v of uint8 images (B, K, 1, H, W), each with the noise of its seed."""
        like = torch.zeros((), device=self.glow.device)
        streams = Streams(seeds, f"dequantize {purpose}", like)
        noise = streams.randn(*images.shape[1:]).flatten(0, 1)
        with torch.no_grad():
            v, _ = self.glow.dequantizer(images.flatten(0, 1).to(noise.device), noise)
        return v.unflatten(0, (len(seeds), -1))

    def _density(self, observed: Tensor, mask: Tensor) -> HoleDensity:
        device = self.glow.device
        return HoleDensity(self.glow.log_prob, observed.to(device), mask.to(device))
