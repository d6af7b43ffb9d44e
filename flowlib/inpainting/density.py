"""The density of an image as a function of its missing pixels alone.

Every engine that fills holes (ascent.py, refine.py, and tables/hmc.py) takes one
`HoleDensity`. None knows a model, so each is tested where the answer has a closed form.
A mask is True where an entry is *missing*. What lies there in x is never looked at.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class HoleDensity:
    """log p(observed, y) of C fills for each of B examples, where y is unbounded.

    A fill is a vector y of D entries, one for each entry of an example. Over the hole
    y = logit(x) (or x itself on the real line), elsewhere y = 0. Densities change with
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
    Raises:
        ValueError: names the argument that cannot be used.

    Example:
        >>> mean, covariance = torch.zeros(2), torch.eye(2)
        >>> normal = torch.distributions.MultivariateNormal(mean, covariance)
        >>> x, mask = torch.zeros(3, 2), torch.tensor([[False, True]] * 3)
        >>> density = HoleDensity(normal.log_prob, x, mask, unit_interval=False)
        >>> y = density.encode(torch.ones(3, 5, 2))  # five fills of each example
        >>> log_p, grad = density.value_and_grad(y)  # (3, 5), (3, 5, 2)
        >>> grad[0, 0].tolist()
        [0.0, -1.0]
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor], Tensor],
        x: Tensor,
        mask: Tensor,
        unit_interval: bool = True,
        chunk: int | None = None,
    ):
        batched = x[:, None] if x.ndim == mask.ndim else x  # (B, 1 or C, *shape)
        if mask.dtype != torch.bool or batched[:, 0].shape != mask.shape:
            raise ValueError(
                "mask must be bool and of the shape of the examples x "
                f"{tuple(x.shape)}, not {mask.dtype} of shape {tuple(mask.shape)}"
            )
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")

        self.log_prob = log_prob
        self.unit_interval = unit_interval
        self.chunk = chunk or (128 if x.device.type == "cpu" else 2048)
        self.shape = mask.shape[1:]
        self.hole = mask.flatten(1)[:, None]  # (B, 1, D)
        # Whatever lay in the hole is gone from here on: (B, 1 or C, D).
        self.observed = torch.where(self.hole, 0.5, batched.flatten(2))

    def __getitem__(self, rows: Tensor) -> "HoleDensity":
        """The same of some of the examples."""
        part = copy.copy(self)
        part.hole = self.hole[rows]
        part.observed = self.observed[rows]
        return part

    def encode(self, x: Tensor) -> Tensor:
        """Fills x (B, C, *shape) -> y (B, C, D), which is 0 outside of the hole."""
        x = x.flatten(2)
        y = torch.logit(x, eps=1e-6) if self.unit_interval else x
        return torch.where(self.hole, y, 0)

    def decode(self, y: Tensor) -> Tensor:
        """y (B, C, D) -> x (B, C, *shape); observed entries are exactly as given."""
        x = y.sigmoid() if self.unit_interval else y
        return torch.where(self.hole, x, self.observed).unflatten(2, self.shape)

    @torch.no_grad()
    def __call__(self, y: Tensor) -> Tensor:
        """log p(y) in nats: (B, C, D) -> (B, C)."""
        return self._evaluate(self.log_prob, y) + self.log_jacobian(y)

    def value_and_grad(self, y: Tensor, of_x: bool = False) -> tuple[Tensor, Tensor]:
        """log p(y), (B, C), and its gradient in y, (B, C, D), 0 outside of the hole.

        With `of_x` both are those of log p(x), still as a function of y.
        """

        def both(x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            value = self.log_prob(x)
            # The sum, not the mean: no fill's gradient depends on how many there are.
            (grad,) = torch.autograd.grad(value.sum(), x)
            return torch.cat([value.detach()[:, None], grad.flatten(1)], 1)

        with torch.enable_grad():
            found = self._evaluate(both, y)  # (B, C, 1 + D)
        value = found[..., 0]
        grad = found[..., 1:]

        if self.unit_interval:
            x = y.sigmoid()
            grad = grad * x * (1 - x)  # the chain rule
            if not of_x:
                grad = grad + 1 - 2 * x  # d/dy log x (1 - x)
        if not of_x:
            value = value + self.log_jacobian(y)
        return value, torch.where(self.hole, grad, 0)

    def _evaluate(self, function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        """function(x) of each fill, chunk by chunk: (B, C, D) -> (B, C, ...)."""
        chunks = self.decode(y).flatten(0, 1).split(self.chunk)  # (chunk, *shape) each
        values = torch.cat([function(chunk) for chunk in chunks])
        return values.unflatten(0, y.shape[:2])

    def log_jacobian(self, y: Tensor) -> Tensor:
        """Σ log dx/dy over the hole, (B, C)."""
        if not self.unit_interval:
            return y.new_zeros(y.shape[:2])
        log_slope = nn.functional.logsigmoid(y) + nn.functional.logsigmoid(-y)
        return torch.where(self.hole, log_slope, 0).sum(2)
