"""Where the engines move: the unbounded coordinate of what is missing, the density there, and random numbers for each example.

An example is flattened to D entries, and there are P points for each of B examples: (B, P, D). Over the hole the coordinate is
y = logit(x), where log p(y) = log p(x) + Σ log x (1 - x), or x itself on the real line; where x is known, y is 0.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn


def to_y(x: Tensor, hole: Tensor, unit_interval: bool) -> Tensor:
    """The coordinate over the hole, 0 elsewhere; x and hole (bool) of any shapes that fit together."""
    return torch.where(hole, torch.logit(x, eps=1e-6) if unit_interval else x, torch.zeros_like(x))


def to_x(y: Tensor, known: Tensor, hole: Tensor, unit_interval: bool) -> Tensor:
    """Completed: y's point over the hole, `known` elsewhere."""
    return torch.where(hole, y.sigmoid() if unit_interval else y, known)


def log_jacobian(y: Tensor) -> Tensor:
    """log dx/dy of x = sigmoid(y), entry by entry."""
    return nn.functional.logsigmoid(y) + nn.functional.logsigmoid(-y)


class Target:
    """log p(known, y) of points (B, P, D) and its gradient in y, `chunk` points at a time.

    Args:
        log_prob: (N, *shape) -> (N,), nats; a density of x.
        shape: of an example, D entries.
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor], shape: Sequence[int], unit_interval: bool, chunk: int):
        self.log_prob, self.shape, self.unit_interval, self.chunk = log_prob, tuple(shape), unit_interval, chunk

    def __call__(self, y: Tensor, known: Tensor, hole: Tensor) -> Tensor:
        """(B, P, D), known and hole alike -> (B, P)."""
        points = to_x(y, known, hole, self.unit_interval)
        parts = points.reshape(-1, *self.shape).split(self.chunk)
        log_p = torch.cat([self.log_prob(part) for part in parts]).reshape(y.shape[:2])
        return log_p + (log_jacobian(y) * hole).sum(2) if self.unit_interval else log_p

    def with_gradient(self, y: Tensor, known: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """Likewise -> (B, P), (B, P, D)."""
        points = to_x(y, known, hole, self.unit_interval)
        log_p, grad = value_and_gradient(self.log_prob, points.reshape(-1, *self.shape), self.chunk)
        log_p, grad = log_p.reshape(y.shape[:2]), grad.reshape(y.shape)
        if self.unit_interval:
            log_p = log_p + (log_jacobian(y) * hole).sum(2)
            grad = grad * points * (1 - points) + 1 - 2 * points
        return log_p, grad * hole


def value_and_gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """log_prob(x) (N,) and its gradient, of x's shape, `chunk` points at a time."""
    values, gradients = [], []
    for part in x.split(chunk):
        with torch.enable_grad():
            part = part.detach().requires_grad_()
            value = log_prob(part)
            gradients.append(torch.autograd.grad(value.sum(), part)[0])
        values.append(value.detach())
    return torch.cat(values), torch.cat(gradients)


class Streams:
    """Random numbers for each of B examples from its own generator, so that they do not depend on the batch it is in.

    Args:
        seeds: (B,), one for each example; 0 ... B-1 if None.
        like: a tensor of the dtype and device that the numbers shall have.
    Raises:
        ValueError: if there are not n seeds.
    """

    def __init__(self, seeds: Sequence[int] | None, n: int, like: Tensor):
        seeds = list(range(n)) if seeds is None else [int(seed) for seed in seeds]
        if len(seeds) != n:
            raise ValueError(f"seeds must be {n}, one for each example, not {len(seeds)}")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.like = like

    def _draw(self, kind: Callable, examples: Sequence[int], *size: int) -> Tensor:
        draws = [kind(*size, generator=self.generators[i], dtype=self.like.dtype) for i in examples]
        return torch.stack(draws).to(self.like.device) if draws else self.like.new_empty(0, *size)

    def rand(self, examples: Tensor, *size: int) -> Tensor:
        """Uniform in [0, 1), (len(examples), *size)."""
        return self._draw(torch.rand, examples.tolist(), *size)

    def randn(self, examples: Tensor, *size: int) -> Tensor:
        """Standard normal, (len(examples), *size)."""
        return self._draw(torch.randn, examples.tolist(), *size)


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
