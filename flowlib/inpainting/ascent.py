"""Gradient ascent on the missing entries; the maximum a posteriori (MAP) estimate."""

import math

import torch
from torch import Tensor

from flowlib.inpainting.density import HoleDensity

BETAS = (0.8, 0.95)  # of Adam: a short memory, for short ascents


class Adam:
    """The steps of torch.optim.Adam, uphill.

    torch's own class imports a compiler first, which takes two seconds. A larger eps
    keeps entries of y whose gradient is nearly 0 from moving far. Source: Kingma and Ba
    (2015), arXiv:1412.6980.
    """

    def __init__(self, y: Tensor, eps: float = 1e-8):
        self.eps = eps
        self.steps = 0
        self.mean = torch.zeros_like(y)  # of the gradient
        self.square = torch.zeros_like(y)  # mean of the gradient's square

    def step(self, y: Tensor, grad: Tensor, lr: float) -> Tensor:
        """Where the next step leads from y.

        A gradient that is infinite or not a number counts as 0.
        """
        grad = torch.where(grad.isfinite(), grad, 0)
        first, second = BETAS
        self.steps += 1
        self.mean = self.mean.lerp(grad, 1 - first)
        self.square = (self.square * second).addcmul(grad, grad, value=1 - second)

        # Both means began at 0. So their weights do not sum to 1 yet, but to these.
        mean_weight = 1 - first**self.steps
        square_weight = 1 - second**self.steps
        scale = self.square.sqrt() / math.sqrt(square_weight) + self.eps
        return y.addcdiv(self.mean, scale, value=lr / mean_weight)


def climb(density: HoleDensity, y: Tensor, steps: int, lr: float) -> Tensor:
    """A few steps up the density of y, the learning rate falling to a tenth."""
    adam = Adam(y, eps=1e-3)
    for step in range(steps):
        _, grad = density.value_and_grad(y)
        y = adam.step(y, grad, lr * (1 - 0.9 * step / steps))
    return y


def find_map(
    density: HoleDensity,
    starts: Tensor,
    *,
    steps: int = 40,
    lr: float = 0.3,
    final_lr: float = 0.03,
) -> Tensor:
    """The likeliest completion of each example: argmax over δ of log p(x + δ · M).

    Gradient ascent (Adam, learning rate falling along a cosine) on the missing entries
    alone, in y = logit(x). What is maximized is the density of x: the density of y has
    another maximum, since densities, unlike probabilities, depend on the coordinate.
    Each start climbs by itself, and the likeliest point on its way is kept, so no
    result is worse than its start.

    Args:
        starts: (B, S, *shape), guesses at the missing entries; elsewhere they are
            ignored.
        steps: of the ascent; 0 only compares the starts.
        lr, final_lr: first and last learning rate.
    Returns:
        The likeliest point that an example's starts led to, (B, *shape).
    Raises:
        ValueError: names the argument that cannot be used.

    Example:
        >>> mean, covariance = torch.ones(2), torch.eye(2)
        >>> normal = torch.distributions.MultivariateNormal(mean, covariance)
        >>> x, mask = torch.zeros(1, 2), torch.tensor([[False, True]])
        >>> density = HoleDensity(normal.log_prob, x, mask, unit_interval=False)
        >>> found = find_map(density, torch.zeros(1, 1, 2))
        >>> [round(value, 1) for value in found[0].tolist()]
        [0.0, 1.0]
    """
    if starts.shape[2:] != density.shape or 0 in starts.shape[:2]:
        shape = ", ".join(map(str, density.shape))
        raise ValueError(
            f"starts must be of shape (B, S, {shape}), not {tuple(starts.shape)}"
        )
    if steps < 0 or not 0 < final_lr <= lr:
        raise ValueError(
            "steps must be >= 0 and 0 < final_lr <= lr, not "
            f"steps={steps}, lr={lr}, final_lr={final_lr}"
        )

    y = density.encode(starts)
    adam = Adam(y)
    top = y.new_full(starts.shape[:2], -math.inf)  # the highest log p so far, (B, S)
    top_y = y
    for step in range(steps + 1):
        log_p, grad = density.value_and_grad(y, of_x=True)
        higher = log_p > top  # False where log p is not a number
        top = torch.where(higher, log_p, top)
        top_y = torch.where(higher[..., None], y, top_y)
        if step < steps:
            share = (1 + math.cos(math.pi * step / steps)) / 2
            y = adam.step(y, grad, final_lr + (lr - final_lr) * share)

    return density.decode(top_y)[torch.arange(len(top)), top.argmax(1)]
