"""Fills holes in grey images with a Glow: where the model, the images and the engines of inpainting.py and posterior.py meet.

Every function takes `masked`, images whose missing pixels have been set to 0, and so cannot see the truth under the hole. Results
are dictionaries of tensors whose first dimension is the image, so that parts of a batch can be put together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowlib.images.glow import Glow, quantise
from flowlib.inpainting.density import frozen, value_and_gradient
from flowlib.inpainting.hmc import posterior_inpaint
from flowlib.inpainting.initial_fills import improve_guesses
from flowlib.inpainting.map_estimate import map_inpaint, nearest_neighbours

STARTS = ("black", "mean", "noise", "neighbour", "sample")
# With one particle a run and so low a share of the effective sample size, β goes from 0 to 1 at once: values in between took a fifth of the
# time, and on held-out images the samples were no better for it.
POSTERIOR = dict(runs=12, particles=1, leapfrog=3, conditional_ess=0.05, settle=4)
DONORS = 5  # nearest images for each particle, of which parts are taken


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def flow_samples(glow: Glow, n: int, seed: int) -> Tensor:
    """n samples of the flow as v in (0, 1), (n, 1, H, W), from their own seed."""
    _, height, width = glow.shape
    device = next(glow.parameters()).device
    shapes = [(n, 8, height // 4, width // 4), (n, 2, height // 2, width // 2)]
    generator = seeded(seed)
    latents = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    parts = [glow.decode([z[i : i + 250] for z in latents])[0] for i in range(0, n, 250)]
    return torch.cat(parts).clamp(1e-6, 1 - 1e-6).cpu()


def flow_bank(glow: Glow, n: int, seed: int) -> Tensor:
    """n samples of the flow as grey levels, uint8 (n, 1, H, W), to find neighbours in where there are no training images."""
    return quantise(flow_samples(glow, n, seed + 1), glow.levels)


def flow_truth(glow: Glow, n: int, seed: int) -> Tensor:
    """n samples of the flow to cut holes into, v in (0, 1), (n, 1, H, W).

    Not of the same seed as `flow_bank` nor as the start "sample": the latents of one seed begin alike, however many are drawn.
    """
    return flow_samples(glow, n, 10_000 + seed)


def neighbours(masked: Tensor, mask: Tensor, bank: Tensor, k: int) -> Tensor:
    """The k images of the bank nearest to each, (k, B, 1, H, W), those known pixels counting most that the hole is near."""
    near = nn.functional.avg_pool2d(mask.float(), 7, stride=1, padding=3, count_include_pad=False)  # share missing among 7x7
    index = nearest_neighbours(masked.float(), mask, bank.float(), min(k, len(bank)), weight=0.05 + near)
    return bank[index].transpose(0, 1)


def make_starts(names: Sequence[str], glow: Glow, bank: Tensor, masked: Tensor, mask: Tensor, seeds: Sequence[int]) -> Tensor:
    """Guesses to climb from, (S, B, 1, H, W) in (0, 1), none of which sees the truth under the hole.

    black: the middle of the black bin; mean: the bank's pixel mean; noise: uniform; neighbour: the image of the bank that is nearest in
    the known pixels; sample: likewise, of 250 of the flow's own samples.
    """
    starts = {
        "black": lambda: torch.full(masked.shape, 0.5),
        "mean": lambda: (bank.float().mean(0) + 0.5).expand(masked.shape),
        "noise": lambda: glow.levels * torch.stack([torch.rand(masked.shape[1:], generator=seeded(seed)) for seed in seeds]),
        "neighbour": lambda: neighbours(masked, mask, bank, 1)[0] + 0.5,
        "sample": lambda: neighbours(masked, mask, quantise(flow_samples(glow, 250, 0), glow.levels), 1)[0] + 0.5,
    }
    return torch.stack([starts[name]() for name in names]) / glow.levels


def dequantised(glow: Glow, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """One v in each pixel's bin, with each image's own noise."""
    device = next(glow.parameters()).device
    return torch.cat([glow.dequantise(image[None].to(device), seeded(seed)) for image, seed in zip(images, seeds)])


def typical_log_prob(glow: Glow, images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of log p(v) over up to 500 images, nats."""
    device = next(glow.parameters()).device
    with torch.no_grad():
        log_p = torch.cat([glow.log_prob(glow.dequantise(part.to(device), seeded(0))) for part in images[:500].split(125)])
    return log_p.mean().item(), log_p.std().item()


def map_fill(
    glow: Glow, bank: Tensor, masked: Tensor, mask: Tensor, seeds: Sequence[int], *, starts: Sequence[str] = STARTS, **options
) -> dict[str, Tensor]:
    """The likeliest fill, from several starts; `options` are those of `map_inpaint`. Log-densities are of v, in nats.

    Returns `map` uint8 (B, 1, H, W), `map_start` (B,) which start it came from, `map_log_prob` and `map_start_log_prob` (B,); and where
    every start led, `map_each` uint8 (B, S, 1, H, W) and `map_each_log_prob` (B, S).
    """
    device = next(glow.parameters()).device
    known = dequantised(glow, masked, seeds)
    guesses = make_starts(starts, glow, bank, masked, mask, seeds).to(device)
    found = map_inpaint(glow.log_prob, known, mask.to(device), guesses, **options)
    each = torch.where(mask, quantise(found.all_x, glow.levels).cpu(), masked).transpose(0, 1)
    return {
        "map": torch.where(mask, quantise(found.x, glow.levels).cpu(), masked),
        "map_start": found.start.cpu(),
        "map_log_prob": found.log_prob.cpu(),
        "map_start_log_prob": found.start_log_prob.cpu(),
        "map_each": each,
        "map_each_log_prob": found.all_log_prob.T.cpu(),
    }


def pixel_widths(glow: Glow, images: Tensor) -> Tensor:
    """How far a pixel of each grey level can move in y = logit(v) before the density changes much: (levels,).

    1 / root mean square of d log p(y) / dy, over these images' pixels of that level and those next to it; the darkest level, most
    of the background, stands alone. Brightest strokes are the narrow ones: there most pixels have one of two or three levels.
    """
    device = next(glow.parameters()).device
    v = dequantised(glow, images, range(len(images)))
    gradient = value_and_gradient(glow.log_prob, v, 128)[1] * v * (1 - v) + 1 - 2 * v
    level = torch.arange(glow.levels, device=device)
    near = (-0.5 * ((level[:, None] - level) / (glow.levels / 64)) ** 2).exp()
    near[0, 1:] = near[1:, 0] = 0
    pixels = images.flatten().long().to(device)
    squares = torch.zeros(glow.levels, device=device).index_add_(0, pixels, gradient.square().flatten())
    return ((near @ squares + 1) / (near @ torch.bincount(pixels, minlength=glow.levels).float() + 1)).rsqrt()


def posterior_fill(
    glow: Glow, bank: Tensor, masked: Tensor, mask: Tensor, seeds: Sequence[int], *, known: Tensor | None = None, **options
) -> dict[str, Tensor]:
    """Samples of the missing pixels given the known ones; `options` are those of `posterior_inpaint`, on top of POSTERIOR.

    The sampler starts from the bank's nearest images, one a particle, which `improve_guesses` has made fit what is known, with parts of
    the DONORS times as many that are nearest.
    Each run dequantises the known pixels with its own noise, so what differs between runs includes the position within a grey level;
    or they are `known`, v in (0, 1), if given. Returns `v` (B, S, 1, H, W) in (0, 1), `samples` the same as uint8, the samples'
    log-densities `log_prob` (B, S), and `log_evidence`, `acceptance`, `ess`, `r_hat` and `temperatures` (B,), see `Posterior`. By default
    the evidence is no more than an importance estimate from one weight a run, which is mostly too low; more particles and a
    `conditional_ess` near 1 make it better, at many times the cost.
    """
    device = next(glow.parameters()).device
    options = POSTERIOR | {"chunk": 128 if device.type == "cpu" else 2048} | options
    if known is None:
        known = torch.stack([dequantised(glow, masked, [1000 * run + seed for seed in seeds]) for run in range(options["runs"])])
    else:
        known = known.to(device).expand(options["runs"], *mask.shape)
    mask_there = mask.to(device)
    particles = options["runs"] * options["particles"]
    donors = torch.stack([dequantised(glow, images, seeds) for images in neighbours(masked, mask, bank, DONORS * particles)])
    guesses = donors[:particles]
    of_run = torch.arange(len(guesses)) % options["runs"]
    with torch.no_grad(), frozen(glow):
        guesses = improve_guesses(glow.log_prob, known[of_run], mask_there, guesses, donors=donors, seeds=seeds, chunk=options["chunk"])
        width = pixel_widths(glow, bank[:64])[quantise(guesses, glow.levels).long()]
    found = posterior_inpaint(glow.log_prob, known, mask_there, guesses, seeds=seeds, width=width, **options)
    v = found.samples.transpose(0, 1).cpu()
    per_image = {name: getattr(found, name).cpu() for name in ("log_evidence", "acceptance", "ess", "r_hat", "temperatures")}
    samples = torch.where(mask[:, None], quantise(v, glow.levels), masked[:, None])
    return {"v": v, "samples": samples, "log_prob": found.log_prob.T.cpu(), **per_image}
