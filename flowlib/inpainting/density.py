"""The density of an image as a function of its missing pixels alone, for any log-density.

Every engine that fills holes (map_estimate.py, initial_fills.py, hmc.py) takes one
`HoleDensity`. None knows a model, so each is tested where the answer has a closed form.
A mask is True where an entry is *missing*. What lies there in x is never looked at.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

# what `progress` is told: a gradient costs three evaluations
VALUE_WORK, GRADIENT_WORK = 1, 3


class HoleDensity:
    """log p(observed, y) of C fills for each of B examples, where y is an unbounded coordinate.

    A fill is a vector y of D entries, one for each entry of an example. Over the hole y
    = logit(x) (or x itself on the real line), elsewhere y = 0. Densities change with
    the coordinate:

        log p(y) = log p(x) + Σ log dx/dy,   dx/dy = x (1 - x),   summed over the hole.

    Args:
        log_prob: (N, *shape) -> (N,), nats, differentiable; a density of x. A model
            with dropout must be in eval mode, which `load_model` returns.
        x: (B, *shape), or (B, C, *shape) where each fill has its own observed entries.
        mask: (B, *shape) bool, True where missing.
        unit_interval: x is in (0, 1); False takes it from the real line.
        chunk: how many fills `log_prob` gets at once; by default 128 on a CPU, 2048 on
            a GPU.
        progress: called with the work done after each chunk, see `GRADIENT_WORK`.
    Raises:
        ValueError: names the argument that cannot be used.

    Example:
        >>> density = HoleDensity(flow.log_prob, x, mask, unit_interval=False)  # x, mask: (B, 2)
        >>> y = density.encode(torch.zeros(len(x), 5, 2))  # five fills of each example
        >>> log_p, grad = density.value_and_grad(y)  # (B, 5), (B, 5, 2)
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor], Tensor],
        x: Tensor,
        mask: Tensor,
        unit_interval: bool = True,
        chunk: int | None = None,
        progress: Callable[[int], object] | None = None,
    ):
        batched = x[:, None] if x.ndim == mask.ndim else x  # (B, 1 or C, *shape)
        if mask.dtype != torch.bool or batched[:, 0].shape != mask.shape:
            shapes = f"{mask.dtype} of shape {tuple(mask.shape)} for x of shape {tuple(x.shape)}"
            raise ValueError(
                f"mask must be bool and of the examples' shape, not {shapes}"
            )
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        self.log_prob, self.unit_interval = log_prob, unit_interval
        self.progress = progress or (lambda work: None)
        self.chunk = chunk or (128 if x.device.type == "cpu" else 2048)
        self.shape = mask.shape[1:]
        self.hole = mask.flatten(1)[:, None]  # (B, 1, D)
        # Whatever lay in the hole is gone from here on.
        # (B, 1 or C, D)
        self.observed = torch.where(self.hole, 0.5, batched.flatten(2))

    def __getitem__(self, rows: Tensor) -> "HoleDensity":
        """The same of some of the examples."""
        part = copy.copy(self)
        part.hole, part.observed = self.hole[rows], self.observed[rows]
        return part

    def encode(self, x: Tensor) -> Tensor:
        """Fills x (B, C, *shape) -> y (B, C, D); what x holds outside the hole is ignored."""
        x = x.flatten(2)
        y = torch.logit(x, eps=1e-6) if self.unit_interval else x
        return torch.where(self.hole, y, 0)

    def decode(self, y: Tensor) -> Tensor:
        """y (B, C, D) -> completed x (B, C, *shape); observed entries are exactly as given."""
        x = torch.where(
            self.hole, y.sigmoid() if self.unit_interval else y, self.observed
        )
        return x.unflatten(2, self.shape)

    @torch.no_grad()
    def __call__(self, y: Tensor) -> Tensor:
        """log p(y) in nats: (B, C, D) -> (B, C)."""
        return self._evaluate(y, self.log_prob, VALUE_WORK) + self.log_jacobian(y)

    def value_and_grad(self, y: Tensor, of_x: bool = False) -> tuple[Tensor, Tensor]:
        """log p(y) and its gradient in y: (B, C, D) -> (B, C) and (B, C, D), which is 0 elsewhere.

        With `of_x` both are those of log p(x), still as a function of y.
        """

        def both(x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            value = self.log_prob(x)
            # The sum, not the mean: no fill's gradient depends on how many others there
            # are.
            (grad,) = torch.autograd.grad(value.sum(), x)
            # (N, 1 + D)
            return torch.cat([value.detach()[:, None], grad.flatten(1)], 1)

        with torch.enable_grad():
            value, grad = self._evaluate(y, both, GRADIENT_WORK).split(
                [1, y.shape[2]], dim=2
            )
        value = value.squeeze(2)  # (B, C)
        if self.unit_interval:
            x = y.sigmoid()
            grad = grad * x * (1 - x)  # the chain rule
        if not of_x:
            value = value + self.log_jacobian(y)
            # d/dy log x (1 - x)
            grad = grad + 1 - 2 * x if self.unit_interval else grad
        return value, torch.where(self.hole, grad, 0)

    def _evaluate(self, y: Tensor, function: Callable, work: int) -> Tensor:
        """function(x) of each fill, chunk by chunk: (B, C, D) -> (B, C, ...)."""
        parts = []
        for part in self.decode(y).flatten(0, 1).split(self.chunk):  # (chunk, *shape)
            parts.append(function(part))
            self.progress(work * len(part))
        return torch.cat(parts).unflatten(0, y.shape[:2])

    def log_jacobian(self, y: Tensor) -> Tensor:
        """Σ log dx/dy over the hole, (B, C)."""
        if not self.unit_interval:
            return y.new_zeros(y.shape[:2])
        log_slope = nn.functional.logsigmoid(y) + nn.functional.logsigmoid(-y)
        return torch.where(self.hole, log_slope, 0).sum(2)
