"""Muon, an optimizer for matrices, with Adam for everything that is no matrix.

A gradient is mostly a few directions with large singular values. Muon replaces them all
by 1, so that the rare directions of a layer are learned as fast as the common ones.

Sources: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; Liu et al.
(2025), arXiv:2502.16982. torch.optim.Muon takes one matrix at a time, and no kernels
of convolutions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices (B, n, m) of the same singular vectors, their singular values near 1.

    Near means 0.7 to 1.2. A singular value below some 1e-3 of the largest stays
    smaller. Five Newton-Schulz steps, s -> 3.4445 s - 4.7750 s³ + 2.0315 s⁵ for each
    singular value s, lift the small ones fast.
    """
    # X Xᵀ is the smaller of the two products if X is wide.
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT

    # Now all singular values are at most 1.
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)

    # x <- 3.4445 x - 4.7750 x xᵀ x + 2.0315 (x xᵀ)² x
    for _ in range(5):
        gram = x @ x.mT
        even = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, even, x, beta=3.4445)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """An optimizer that moves each parameter by an orthogonal matrix.

    A parameter (out, ...) is read as a matrix of `out` rows. The step is
    lr · √max(1, rows / columns) · orthogonalize(momentum), with Nesterov's momentum.
    Parameters of one shape are orthogonalized together.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for options in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in options["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._move(parameters, options["lr"], options["momentum"])

    def _move(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        # The moving means of the gradients, one for each parameter.
        grads = [parameter.grad for parameter in parameters]
        means = []
        for parameter in parameters:
            zero = torch.zeros_like(parameter)
            means.append(self.state[parameter].setdefault("momentum", zero))
        torch._foreach_lerp_(means, grads, 1 - momentum)

        # Nesterov looks one step ahead.
        ahead = torch.stack(grads).lerp(torch.stack(means), momentum)
        steps = orthogonalize(ahead.flatten(2))  # (parameters, rows, columns)
        lr *= max(1, steps.shape[1] / steps.shape[2]) ** 0.5
        torch._foreach_sub_(parameters, list(steps.view_as(ahead).unbind()), alpha=lr)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of a model's linear layers that have 8 rows and columns or more.

    These are the ones to give to Muon: with it the narrow ones learned worse.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers if min(layer.weight.shape) >= 8]


def muon_and_adam(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon at `lr` for the kernels that mix channels, Adam at lr / 10 for the rest."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    kernels = [layer.weight for layer in layers if layer.groups == 1]
    chosen = set(kernels)
    others = [parameter for parameter in model.parameters() if parameter not in chosen]
    return [Muon(kernels, lr), torch.optim.Adam(others, lr / 10, fused=True)]
