"""Filling in what is missing, with any density: masks, neighbours, and the maximum of the likelihood.

A mask is True where an entry is *missing*. The engine is a function of a log-density, a batch and a mask, of no particular model:
it takes images and 2-D points alike. The density stays as it is; only the missing entries move.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowlib.inpainting.density import frozen, to_x, to_y


def nearest_neighbours(x: Tensor, mask: Tensor, bank: Tensor, k: int = 1, weight: Tensor | None = None) -> Tensor:
    """For each example the k of the bank that are nearest to it in its known entries: indices (B, k), nearest first.

    Args:
        x: (B, ...), looked at only where it is known.
        mask: (B, ...) bool, True where missing.
        bank: (N, ...) complete examples.
        weight: (B, ...), of each known entry's squared difference; all 1 if None.
    """
    known = (~mask).flatten(1).to(bank.dtype)
    if weight is not None:
        known = known * weight.flatten(1)
    x, bank = torch.where(mask, torch.zeros_like(x), x).flatten(1), bank.flatten(1)
    squared_distance = known @ bank.square().T - 2 * (known * x) @ bank.T  # up to a constant per example
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
    stop_at: float = math.inf,
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
        stop_at: an example that has reached this log p, say that of typical data, climbs no further.
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
    y = to_y(starts.flatten(0, 1), hole, unit_interval).detach().requires_grad_()

    def completed() -> Tensor:
        return to_x(y, known, hole, unit_interval)

    best_x = start_x = completed().detach()
    best = torch.full((len(known),), -math.inf, dtype=x.dtype, device=x.device)
    start_log_prob = best
    optimiser = torch.optim.Adam([y], lr=lr, maximize=True)
    with frozen(log_prob):
        for step in range(steps + 1):
            candidate = completed()
            log_p = log_prob(candidate)
            better = (log_p.detach() > best) & (best < stop_at)  # False where log p is not a number
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


def _like(per_example: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to broadcast against x."""
    return per_example.reshape(-1, *[1] * (x.ndim - 1))
