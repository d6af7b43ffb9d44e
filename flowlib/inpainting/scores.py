"""Scores: how good a fill is, and whether several can be trusted as its distribution.

All look at the missing entries alone, where the mask is True. Grey values are in
[0, 1]. Shapes: B images, S samples of each.
"""

import math

import torch
from torch import Tensor

COVERAGES = (0.5, 0.8, 0.9, 0.95)


def hole_mse(filled: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the missing pixels: (B, ...) -> (B,)."""
    return hole_mean((filled - truth).square(), mask)


def hole_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the missing pixels: (B, ...) -> (B,)."""
    return torch.where(mask, values, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error: 10 log10(1 / mse) dB.

    It is at most 120.
    """
    return -10 * math.log10(max(mse, 1e-12))


def ink_ratio(filled: Tensor, truth: Tensor, mask: Tensor) -> float:
    """The fills' sum over the truth's, in all holes together.

    1 is right, 0 is a black hole.
    """
    return (filled[mask].sum() / truth[mask].sum().clamp(min=1e-9)).item()


def crps(samples: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Continuous ranked probability score: (B, S, ...), (B, ...) -> (B,).

    E|X - truth| - E|X - X'| / 2 for each pixel, and the mean over the missing ones; 0
    is perfect, and of one sample it is the absolute error. Source: Gneiting and Raftery
    (2007), doi:10.1198/016214506000001437, equation 21.
    """
    samples = samples.transpose(0, 1)  # (S, B, ...)
    count = len(samples)
    error = (samples - truth).abs().mean(0)

    # E|X - X'| / 2 is the sum over all pairs, each taken once, divided by S². Sorted,
    # the k-th of S samples enters that sum 2 k - S - 1 times.
    times = torch.arange(1 - count, count, 2).to(samples)
    half_spread = torch.tensordot(times, samples.sort(0).values, 1) / count**2
    return hole_mean(error - half_spread, mask)


def ranks(
    samples: Tensor,
    truth: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The truth's rank among samples, in (0, 1): (B, S, ...), (B, ...) -> (B, ...).

    Ranks are uniform if the truth is one more draw from where the samples are from.
    Ties are broken at random. Source: Talts et al. (2018), arXiv:1804.06788
    (simulation-based calibration).
    """
    truth = truth[:, None]
    ties = 1 + (samples == truth).sum(1)
    uniform = torch.rand(ties.shape, generator=generator).to(truth.device)
    return ((samples < truth).sum(1) + uniform * ties) / (samples.shape[1] + 1)


def inside(rank: Tensor, share: float) -> Tensor:
    """Whether the truth is, by its rank, in the samples' central interval: bool."""
    return (rank - 0.5).abs() < share / 2
