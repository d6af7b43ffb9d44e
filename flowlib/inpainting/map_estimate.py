"""The maximum a posteriori (MAP) estimate: the missing entries that maximize the likelihood."""

import math

import torch
from torch import Tensor

from flowlib.inpainting.density import HoleDensity


def find_map(
    density: HoleDensity,
    starts: Tensor,
    *,
    steps: int = 50,
    lr: float = 0.3,
    final_lr: float = 0.03,
) -> Tensor:
    """The likeliest completion of each example: argmax over δ of log p(x_observed + δ · M).

    Gradient ascent (Adam, learning rate falling along a cosine) on the missing entries alone, in
    y = logit(x). What is maximized is the density of x: the density of y has another maximum, since
    densities, unlike probabilities, depend on the coordinate. Each start climbs by itself, and the
    likeliest point on its way is kept, so no result is worse than its start. Returns the likeliest
    point that an example's starts led to, (B, *shape).

    Args:
        starts: (B, S, *shape), guesses at the missing entries; elsewhere they are ignored.
        steps: of the ascent; 0 only compares the starts.
        lr, final_lr: first and last learning rate.
    Raises:
        ValueError: names the argument that cannot be used.

    Example:
        >>> density = HoleDensity(flow.log_prob, x, mask, unit_interval=False)
        >>> find_map(density, torch.zeros(len(x), 1, 2))  # (B, 2)
    """
    if starts.shape[2:] != density.shape or 0 in starts.shape[:2]:
        shape = ", ".join(map(str, density.shape))
        raise ValueError(f"starts must be of shape (B, S, {shape}), not {tuple(starts.shape)}")
    if steps < 0 or not 0 < final_lr <= lr:
        given = f"steps={steps}, lr={lr}, final_lr={final_lr}"
        raise ValueError(f"steps must be >= 0 and 0 < final_lr <= lr, not {given}")
    y = density.encode(starts).requires_grad_()
    best_y = y.detach().clone()
    best = best_y.new_full(starts.shape[:2], -math.inf)
    # The short memory (betas) takes half of the steps that Adam's own would.
    optimizer = torch.optim.Adam([y], lr=lr, betas=(0.8, 0.95), maximize=True)
    for step in range(steps + 1):
        log_p, grad = density.value_and_grad(y.detach(), of_x=True)
        better = log_p > best  # False where log p is not a number
        best = torch.where(better, log_p, best)
        best_y = torch.where(better[..., None], y.detach(), best_y)
        if step < steps:
            y.grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
            share = (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = final_lr + (lr - final_lr) * share
            optimizer.step()
    return density.decode(best_y)[torch.arange(len(best)), best.argmax(1)]
