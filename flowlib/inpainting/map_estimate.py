"""The maximum a posteriori (MAP) estimate: the missing entries that maximize the likelihood."""

import math

import torch
from torch import Tensor

from flowlib.inpainting.density import HoleDensity

BETAS = (0.8, 0.95)  # of Adam: a short memory, for short ascents


def find_map(
    density: HoleDensity,
    starts: Tensor,
    *,
    steps: int = 40,
    lr: float = 0.3,
    final_lr: float = 0.03,
) -> Tensor:
    """The likeliest completion of each example: argmax over δ of log p(x_observed + δ · M).

    Gradient ascent (Adam, learning rate falling along a cosine) on the missing entries
    alone, in y = logit(x). What is maximized is the density of x: the density of y has
    another maximum, since densities, unlike probabilities, depend on the coordinate.
    Each start climbs by itself, and the likeliest point on its way is kept, so no
    result is worse than its start. Returns the likeliest point that an example's starts
    led to, (B, *shape).

    Args:
        starts: (B, S, *shape), guesses at the missing entries; elsewhere they are
            ignored.
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
        raise ValueError(
            f"starts must be of shape (B, S, {shape}), not {tuple(starts.shape)}"
        )
    if steps < 0 or not 0 < final_lr <= lr:
        given = f"steps={steps}, lr={lr}, final_lr={final_lr}"
        raise ValueError(f"steps must be >= 0 and 0 < final_lr <= lr, not {given}")
    y = best_y = density.encode(starts)
    best, adam = y.new_full(starts.shape[:2], -math.inf), Adam(y)
    for step in range(steps + 1):
        log_p, grad = density.value_and_grad(y, of_x=True)
        better = log_p > best  # False where log p is not a number
        best = torch.where(better, log_p, best)
        best_y = torch.where(better[..., None], y, best_y)
        if step < steps:
            share = (1 + math.cos(math.pi * step / steps)) / 2
            y = adam.step(y, grad, final_lr + (lr - final_lr) * share)
    return density.decode(best_y)[torch.arange(len(best)), best.argmax(1)]


class Adam:
    """Takes the steps of torch.optim.Adam, uphill. torch's own imports a compiler first: 2 seconds.

    A larger eps keeps entries of y whose gradient is nearly 0 from moving far. Source:
    Kingma and Ba (2015), arXiv:1412.6980.
    """

    def __init__(self, y: Tensor, eps: float = 1e-8):
        self.eps, self.steps = eps, 0
        # means of the gradient, of its square
        self.mean = self.square = torch.zeros_like(y)

    def step(self, y: Tensor, grad: Tensor, lr: float) -> Tensor:
        """Where the next step leads from y. A gradient that is infinite or NaN counts as 0."""
        grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        (first, second), self.steps = BETAS, self.steps + 1
        self.mean = self.mean.lerp(grad, 1 - first)
        self.square = (self.square * second).addcmul(grad, grad, value=1 - second)
        # Both means began at 0. So the weights in them do not sum to 1 yet, but to
        # these.
        mean_weight, square_weight = 1 - first**self.steps, 1 - second**self.steps
        scale = self.square.sqrt() / math.sqrt(square_weight) + self.eps
        return y.addcdiv(self.mean, scale, value=lr / mean_weight)
