"""Filling in what is missing, with any density: masks, the maximum of the likelihood, and how to judge a fill.

A mask is True where an entry is *missing*. The engine is a function of a log-density, a batch and a mask, of no particular model:
it takes images and 2-D points alike. The density stays as it is; only the missing entries move.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

# ---------------------------------------------------------------- masks


def square_masks(n: int, height: int, width: int, side: int, generator: torch.Generator | None = None) -> Tensor:
    """n masks, bool (n, 1, height, width), each missing (True) in one side x side square at a uniformly random place.

    Raises:
        ValueError: if the square does not fit into the image, or side or n is not positive.
    """
    if n < 1 or not 1 <= side <= min(height, width):
        raise ValueError(f"side must be 1 ... {min(height, width)} for images of {height}x{width}, and n positive; not side={side}, n={n}")
    top = torch.randint(height - side + 1, (n, 1, 1, 1), generator=generator)
    left = torch.randint(width - side + 1, (n, 1, 1, 1), generator=generator)
    row, column = torch.arange(height)[:, None], torch.arange(width)
    return (row >= top) & (row < top + side) & (column >= left) & (column < left + side)


def noise_masks(n: int, height: int, width: int, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """n masks, bool (n, 1, height, width), each missing (True) in exactly round(fraction · height · width) pixels at random places.

    Raises:
        ValueError: if fraction is not in [0, 1], or n is not positive.
    """
    if n < 1 or not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1] and n positive, not fraction={fraction}, n={n}")
    rank = torch.rand(n, height * width, generator=generator).argsort(dim=1).argsort(dim=1)
    return (rank < round(fraction * height * width)).reshape(n, 1, height, width)


def nearest_neighbours(x: Tensor, mask: Tensor, bank: Tensor, k: int = 1) -> Tensor:
    """For each example the k of the bank that are nearest to it in its known entries: indices (B, k), nearest first.

    Args:
        x: (B, ...), looked at only where it is known.
        mask: (B, ...) bool, True where missing.
        bank: (N, ...) complete examples.
    """
    known = (~mask).flatten(1).to(bank.dtype)
    x, bank = torch.where(mask, torch.zeros_like(x), x).flatten(1), bank.flatten(1)
    squared_distance = known @ bank.square().T - 2 * x @ bank.T  # up to a constant per example
    return squared_distance.topk(k, dim=1, largest=False).indices


# ---------------------------------------------------------------- the maximum of the likelihood


class MapResult(NamedTuple):
    """What `map_inpaint` found; B examples of any shape, S starts."""

    x: Tensor  # (B, ...) completed: known entries as given, missing ones as found
    log_prob: Tensor  # (B,) its log-density, nats
    start: Tensor  # (B,) which start led there
    start_x: Tensor  # (B, ...) that start, completed
    start_log_prob: Tensor  # (B,) its log-density
    all_x: Tensor  # (S, B, ...) where each start led: local maxima
    all_log_prob: Tensor  # (S, B) their log-densities


@torch.enable_grad()
def map_inpaint(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    mask: Tensor,
    starts: Tensor,
    *,
    steps: int = 300,
    lr: float = 0.1,
    final_lr: float = 0.005,
    unit_interval: bool = True,
) -> MapResult:
    """The missing entries that maximise the likelihood of the whole example: argmax over δ of log p(x_known + δ · M).

    Gradient ascent (Adam, learning rate falling along a cosine) on δ alone; if `log_prob` is a method of a module, the module is in
    eval mode with frozen parameters meanwhile. Each example climbs by itself: its result does not depend on the others of the batch.
    Of each example's starts, and of all the points on the way, the one of highest log p is returned, so never one worse than its start.
    What x holds where it is missing is never looked at.

    Args:
        log_prob: (N, ...) -> (N,), differentiable; a density of x itself, not of the logit that is climbed in.
        x: (B, ...) floating point; with unit_interval its values are in (0, 1).
        mask: (B, ...) bool, True where missing.
        starts: (S, B, ...), S guesses at the missing entries; what they hold elsewhere is ignored.
        steps: of the ascent; 0 only compares the starts.
        lr, final_lr: first and last learning rate.
        unit_interval: climb in logit(δ), so that no value leaves (0, 1); False climbs in δ itself, for data on the real line.
    Raises:
        ValueError: names the argument that cannot be used.
    """
    if mask.dtype != torch.bool or mask.shape != x.shape:
        raise ValueError(f"mask must be bool and of x's shape {tuple(x.shape)}, not {mask.dtype} and {tuple(mask.shape)}")
    if starts.shape[1:] != x.shape or len(starts) == 0:
        raise ValueError(f"starts must be of shape (S, {', '.join(map(str, x.shape))}), not {tuple(starts.shape)}")
    if steps < 0 or not 0 < final_lr <= lr:
        raise ValueError(f"steps must be >= 0 and 0 < final_lr <= lr, not steps={steps}, lr={lr}, final_lr={final_lr}")
    n_starts, n = starts.shape[:2]
    hole = mask.repeat(n_starts, *[1] * (x.ndim - 1))
    known = torch.where(mask, torch.zeros_like(x), x).repeat(n_starts, *[1] * (x.ndim - 1))  # whatever lay in the hole is gone from here on
    delta = torch.where(hole, starts.flatten(0, 1), torch.full_like(known, 0.5))
    to_x = torch.sigmoid if unit_interval else torch.Tensor.clone
    y = (torch.logit(delta, eps=1e-6) if unit_interval else delta).detach().clone().requires_grad_()

    def completed() -> Tensor:
        return torch.where(hole, to_x(y), known)

    best_x = start_x = completed().detach()
    best = torch.full((len(known),), -math.inf, dtype=x.dtype, device=x.device)
    start_log_prob = best
    optimiser = torch.optim.Adam([y], lr=lr, maximize=True)
    with frozen(log_prob):
        for step in range(steps + 1):
            candidate = completed()
            log_p = log_prob(candidate)
            better = log_p.detach() > best  # False where log p is not a number
            best = torch.where(better, log_p.detach(), best)
            best_x = torch.where(_like(better, best_x), candidate.detach(), best_x)
            if step == 0:
                start_log_prob = log_p.detach()
            if step < steps:
                # the sum, not the mean: no example's step depends on how many others there are
                (gradient,) = torch.autograd.grad(log_p.sum(), y)
                y.grad = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
                optimiser.param_groups[0]["lr"] = final_lr + (lr - final_lr) * (1 + math.cos(math.pi * step / steps)) / 2
                optimiser.step()
    all_x, all_log_prob = best_x.reshape(starts.shape), best.reshape(n_starts, n)
    start, example = all_log_prob.argmax(0), torch.arange(n, device=x.device)
    return MapResult(
        x=all_x[start, example],
        log_prob=all_log_prob[start, example],
        start=start,
        start_x=start_x.reshape(starts.shape)[start, example],
        start_log_prob=start_log_prob.reshape(n_starts, n)[start, example],
        all_x=all_x,
        all_log_prob=all_log_prob,
    )


@contextlib.contextmanager
def frozen(log_prob: Callable) -> Iterator[None]:
    """Puts the module whose method `log_prob` is, if any, in eval mode with frozen parameters, and back afterwards."""
    module = log_prob if isinstance(log_prob, nn.Module) else getattr(log_prob, "__self__", None)
    if not isinstance(module, nn.Module):
        yield
        return
    modes = [(part, part.training) for part in module.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval().requires_grad_(False)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)


def _like(per_example: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to broadcast against x."""
    return per_example.reshape(-1, *[1] * (x.ndim - 1))


# ---------------------------------------------------------------- judging a fill


def hole_mse(filled: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the missing pixels alone: (B, ...) grey levels in [0, 1] -> (B,); nan where nothing is missing."""
    error = torch.where(mask, (filled - truth).square(), torch.zeros_like(truth))
    return error.flatten(1).sum(1) / mask.flatten(1).sum(1)


def hole_psnr(filled: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Peak signal-to-noise ratio over the missing pixels, dB: 10 log10(1 / mean over the images of `hole_mse`)."""
    return -10 * math.log10(max(hole_mse(filled, truth, mask).nanmean().item(), 1e-12))


def ink_ratio(filled: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Sum of the fills over the sum of the truth, over all the missing pixels of all the images: 1 is right, 0 is a black hole."""
    return (filled[mask].sum() / truth[mask].sum()).item()
