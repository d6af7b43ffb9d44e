"""Fills holes in grey images with a Glow: where the model, the images and the engines meet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flowlib.images.classifier import Classifier
from flowlib.images.glow import Glow
from flowlib.inpainting import scores
from flowlib.inpainting.density import GRADIENT_WORK, VALUE_WORK, HoleDensity
from flowlib.inpainting.fill import Fill, Problem, Truth
from flowlib.inpainting.hmc import Chains, sample_hmc
from flowlib.inpainting.initial_fills import climb, refine_fills, similar_images
from flowlib.inpainting.map_estimate import find_map
from flowlib.rng import Streams

# of the MAP ascent, after which the likeliest of several goes on alone
FIRST_STEPS = 10
Progress = Callable[[int], object] | None


@dataclass(frozen=True)
class FillSettings:
    """How much work goes into a fill; see `find_map`, `refine_fills` and `sample_hmc`."""

    map_steps: int = 40  # of the MAP ascent
    chains: int = 12  # each gives one sample
    similar: int = 5  # similar images for each chain, from which it takes patches
    rounds: int = 7  # at most
    crossovers: int = 8
    ascent: int = 5  # steps in a round
    last_ascent: int = 15
    moves: int = 4
    leapfrog: int = 2

    def work(self) -> int:
        """What one image costs at most, in the units of `HoleDensity`'s progress."""
        first = min(FIRST_STEPS, self.map_steps)  # of each of two starts
        ascent = (2 * (first + 1) + self.map_steps - first + 1) * GRADIENT_WORK
        a_round = (self.crossovers + 1) * VALUE_WORK + self.ascent * GRADIENT_WORK
        after = (self.last_ascent + 1 + self.moves * self.leapfrog) * GRADIENT_WORK
        return ascent + self.chains * (self.rounds * a_round + after)


def run_engine(
    density: HoleDensity,
    y: Tensor,
    similar: Tensor,
    widths: Callable[[Tensor], Tensor],
    streams: Streams,
    settings: FillSettings,
    lr: float = 0.4,
) -> tuple[Tensor, Chains]:
    """Refines fills y (B, C, D) and moves a chain from each. Returns the chains' starts and ends.

    `similar` and `lr` are those of `refine_fills`. `widths` says how far each entry of
    the refined fills can move, (B, C, D) -> (B, C, D).
    """
    search = {"rounds": settings.rounds, "crossovers": settings.crossovers}
    y = refine_fills(
        density, y, similar, streams, steps=settings.ascent, lr=lr, **search
    )
    # near to the top of each fill's mode
    y = climb(density, y, settings.last_ascent, lr)
    width = widths(y) * density.hole
    y = y + width * streams.randn(*y.shape[1:])
    moves = {"moves": settings.moves, "leapfrog": settings.leapfrog}
    return y, sample_hmc(density, y, width, streams, **moves)


class Inpainter:
    """Fills holes with a Glow, whose weights stay as they are.

    `references` are complete images of the same kind, uint8 (N, 1, H, W): the training
    images, or samples of the flow. A `classifier`, if given, tells which digit a fill
    is.

    Example:
        >>> inpainter = Inpainter(glow, load_images("mnist").train)
        >>> fill = inpainter.fill(problem)
        >>> fill.mean()  # (B, 1, 28, 28), grey values in [0, 1]
    """

    def __init__(
        self,
        glow: Glow,
        references: Tensor,
        classifier: Classifier | None = None,
        settings: FillSettings | None = None,
    ):
        self.glow, self.references, self.classifier = glow, references, classifier
        self.settings = settings or FillSettings()

    def fill(self, problem: Problem, progress: Progress = None) -> Fill:
        """The MAP estimate and samples of each image; `progress` is called with the work done."""
        sampled = self.sample(problem, progress)
        best = self.find_map(problem, self.starts(sampled), progress)
        mean, std = self.typical_log_prob
        digits = None
        if self.classifier is not None:
            digits = (
                self.classifier.classify(sampled["samples"].flatten(0, 1))
                .argmax(1)
                .cpu()
            )
            digits = digits.unflatten(0, (len(problem), -1))  # (B, S)
        best_log_prob = self.log_prob(best)
        return Fill(
            masked=problem.masked,
            mask=problem.mask,
            white=torch.full((len(problem),), float(self.glow.levels - 1)),
            map=self.to_levels(best, problem),
            map_log_prob=best_log_prob,
            map_atypical=best_log_prob > mean + 3 * std,
            typical=(sampled["log_prob"].amax(1) - mean) / std,
            digits=digits,
            **sampled,
        )

    def find_map(
        self, problem: Problem, starts: Tensor, progress: Progress = None
    ) -> Tensor:
        """The likeliest fill of each image, v (B, 1, H, W); see `map_estimate.find_map`.

        All `starts` (B, S, 1, H, W) climb for FIRST_STEPS, then the likeliest goes on
        alone. Under
        squares black overtakes a sample on the way: choosing at once cost 130 nats
            (square:14).
        """
        observed = self._dequantize(problem.masked[:, None], problem.seeds, "observed")
        density = self._density(problem, observed, progress)
        first = min(FIRST_STEPS, self.settings.map_steps)
        best = find_map(density, starts.to(self.glow.device), steps=first)
        return find_map(density, best[:, None], steps=self.settings.map_steps - first)

    def starts(self, sampled: dict[str, Tensor]) -> Tensor:
        """Guesses for `find_map`, (B, 2, 1, H, W): black, and the likeliest of what was sampled."""
        likeliest = sampled["log_prob"].argmax(1)
        # (B, 1, H, W)
        v = sampled["samples_v"][torch.arange(len(likeliest)), likeliest]
        return torch.stack([torch.full_like(v, 0.5 / self.glow.levels), v], 1)

    def sample(self, problem: Problem, progress: Progress = None) -> dict[str, Tensor]:
        """Samples of the missing pixels given the observed ones, and how the chains fared.

        A chain starts near a similar reference image that has been refined to fit what
        is observed. Where in its bin an observed pixel lies, each chain draws for
        itself, unless `problem.observed` says. Returns the `Fill`'s fields from
        `samples` to `travelled`.
        """
        settings, seeds, observed = self.settings, problem.seeds, problem.observed
        if observed is None:
            many = problem.masked[:, None].expand(-1, settings.chains, -1, -1, -1)
            observed = self._dequantize(many, seeds, "observed")  # (B, C, 1, H, W)
        density = self._density(problem, observed, progress)
        number = settings.chains * settings.similar
        similar = similar_images(problem.masked, problem.mask, self.references, number)
        # (B, K, D)
        similar = density.encode(self._dequantize(similar, seeds, "donors"))
        streams = Streams(seeds, "fills", similar)
        # In a random order, so that the first sample is no better than the last.
        order = streams.rand(settings.chains).argsort(1) % similar.shape[1]  # (B, C)
        y = similar.gather(1, order[..., None].expand(-1, -1, similar.shape[2]))

        def widths(y: Tensor) -> Tensor:
            # (B, C, D)
            levels = self.glow.quantize(density.decode(y)).flatten(2).long()
            return self.pixel_widths[levels]

        start, chains = run_engine(density, y, similar, widths, streams, settings)
        v = density.decode(chains.y)
        log_prob = self.log_prob(v.flatten(0, 1)).unflatten(0, v.shape[:2])
        found = {"samples_v": v, "log_prob": log_prob, "acceptance": chains.acceptance}
        found |= {"travelled": scores.travelled(density.decode(start), v)}
        found = {name: value.cpu() for name, value in found.items()}
        return {"samples": self.to_levels(v, problem), **found}

    def truth(self, images: Tensor, seeds: Sequence[int]) -> Truth:
        """The truth of uint8 images (B, 1, H, W), dequantized with noise of its own."""
        v = self._dequantize(images[:, None], seeds, "truth")[:, 0]
        return Truth(images / (self.glow.levels - 1), v.cpu(), self.log_prob(v))

    @torch.no_grad()
    def log_prob(self, v: Tensor) -> Tensor:
        """log p(v) as it is reported, nats: (N, 1, H, W) -> (N,), on the CPU.

        The networks run in float32, because bfloat16 would change it by up to 2 nats.
        """
        precision = self.glow.precision
        self.glow.set_precision(torch.float32)
        parts = [
            self.glow.log_prob(part.to(self.glow.device)).cpu() for part in v.split(100)
        ]
        self.glow.set_precision(precision)
        return torch.cat(parts)

    @cached_property
    def typical_log_prob(self) -> tuple[float, float]:
        """The checkpoint's `measure_log_prob` of held-out images, else that of the references."""
        stored = getattr(self.glow, "metrics", {}).get("held_out_log_prob")
        return tuple(stored or self.measure_log_prob(self.references))

    def measure_log_prob(self, images: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of log p(v) over the first 500 images (N, 1, H, W), nats."""
        images = images[:500]
        log_p = self.truth(images, range(len(images))).log_prob
        return log_p.mean().item(), log_p.std().item()

    @cached_property
    def pixel_widths(self) -> Tensor:
        """How far a pixel can move in y before the density changes much, by grey level: (levels,).

        1 / root mean square of d log p(y) / dy, over the pixels of that level, and of
        levels next to it, in 64 reference images. Black, most of the background, stands
        alone. The brightest
        strokes are the narrow ones: there most pixels have one of two or three levels.
        """
        images = self.references[:64]
        # (N, 1, 1, H, W)
        v = self._dequantize(images[:, None], range(len(images)), "widths")
        everything = torch.ones_like(v[:, 0], dtype=torch.bool)
        density = HoleDensity(self.glow.log_prob, v, everything)
        _, grad = density.value_and_grad(density.encode(v))
        levels = self.glow.levels
        level, pixel = (
            torch.arange(levels, device=v.device),
            images.flatten().long().to(v.device),
        )
        # (levels, levels)
        near = (-0.5 * ((level[:, None] - level) / (levels / 64)) ** 2).exp()
        near[0, 1:] = near[1:, 0] = 0
        squares = grad.new_zeros(levels).index_add_(0, pixel, grad.square().flatten())
        counts = torch.bincount(pixel, minlength=levels).to(grad.dtype)
        return ((near @ squares + 1) / (near @ counts + 1)).rsqrt()

    def to_levels(self, v: Tensor, problem: Problem) -> Tensor:
        """v (B, ..., 1, H, W) as grey levels, with the observed pixels as they were given."""
        shape = (len(v), *(1,) * (v.ndim - 4), *v.shape[-3:])
        mask, masked = problem.mask.reshape(shape), problem.masked.reshape(shape)
        return torch.where(mask, self.glow.quantize(v).cpu(), masked)

    def _dequantize(self, images: Tensor, seeds: Sequence[int], purpose: str) -> Tensor:
        """v of uint8 images (B, K, 1, H, W), with noise that belongs to each image's seed."""
        streams = Streams(
            seeds, f"dequantize {purpose}", torch.zeros((), device=self.glow.device)
        )
        noise = streams.randn(*images.shape[1:]).flatten(0, 1)
        with torch.no_grad():
            v, _ = self.glow.dequantizer(images.flatten(0, 1).to(noise.device), noise)
        return v.unflatten(0, (len(seeds), -1))

    def _density(
        self, problem: Problem, observed: Tensor, progress: Progress
    ) -> HoleDensity:
        device = self.glow.device
        hole = problem.mask.to(device)
        return HoleDensity(
            self.glow.log_prob, observed.to(device), hole, progress=progress
        )
