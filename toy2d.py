"""Two moons with a density that is known exactly, so that "how good is the flow" has an absolute answer.

scikit-learn's `make_moons` as n grows: half the points on the upper half circle (cos t, sin t), half on the lower one
(1 - cos t, 1/2 - sin t), t uniform on [0, π], plus noise N(0, σ² I).
"""

import math

import numpy as np
import torch
from torch import Tensor


class TwoMoons:
    """The two-moons distribution; everything is computed in float64.

    Args:
        noise: σ, the standard deviation of the noise around the two half circles, >= 0.02.
    Raises:
        ValueError: if noise is out of range.
    """

    def __init__(self, noise: float = 0.05):
        if not 0.02 <= noise < math.inf:
            raise ValueError(f"noise must be at least 0.02, not {noise}")
        self.noise = noise
        # Gauss-Legendre on each half circle: nodes at most 0.6 σ apart integrate a Gaussian of width σ exactly, up to rounding.
        nodes, weights = np.polynomial.legendre.leggauss(math.ceil(max(8, 8 / noise)))
        angle = torch.from_numpy((nodes + 1) * math.pi / 2)
        self._centres = torch.cat([self._upper(angle), self._lower(angle)])
        self._log_weights = torch.from_numpy(np.log(weights / 4)).repeat(2)  # Σ weights = 2, two moons: a density over both

    @staticmethod
    def _upper(angle: Tensor) -> Tensor:
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

    @staticmethod
    def _lower(angle: Tensor) -> Tensor:
        return torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent points, (n, 2) in torch's default dtype.

        `make_moons` spaces the angles evenly, so that its small batches are not independent; here every angle is drawn.
        """
        angle = math.pi * torch.rand(n, generator=generator)
        upper = torch.rand(n, 1, generator=generator) < 0.5
        return torch.where(upper, self._upper(angle), self._lower(angle)) + self.noise * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log-density in nats, by quadrature along the arcs: (B, 2) -> (B,), float64."""
        normaliser = math.log(2 * math.pi * self.noise**2)
        log_p = []
        for chunk in x.double().split(8192):  # bounds the table of distances
            distance = torch.cdist(chunk, self._centres, compute_mode="donot_use_mm_for_euclid_dist") / self.noise
            log_p.append(torch.logsumexp(self._log_weights - 0.5 * distance.square(), dim=1) - normaliser)
        return torch.cat(log_p)

    def entropy(self) -> float:
        """-∫ p log p dx in nats: no model's expected negative log-likelihood is below it."""
        points, area = grid(self.bounds(6.5), spacing=self.noise / 3)
        log_p = self.log_prob(points)
        return float(-(log_p.exp() * log_p).sum() * area)

    def bounds(self, sigmas: float) -> tuple[float, float, float, float]:
        """The box (left, right, bottom, top) that reaches `sigmas` noise levels beyond the arcs."""
        margin = sigmas * self.noise
        return (-1 - margin, 2 + margin, -0.5 - margin, 1 + margin)


def grid(bounds: tuple[float, float, float, float], spacing: float) -> tuple[Tensor, float]:
    """The midpoints (N, 2), float64, of a grid over (left, right, bottom, top), x running fastest, and the area of a cell."""
    axes = grid_axes(bounds, spacing)
    y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1), float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))


def grid_axes(bounds: tuple[float, float, float, float], spacing: float) -> tuple[Tensor, Tensor]:
    """The midpoints' x and y coordinates of `grid`."""
    left, right, bottom, top = bounds
    axes = []
    for low, high in ((left, right), (bottom, top)):
        cells = max(2, math.ceil((high - low) / spacing))
        axes.append(low + (torch.arange(cells, dtype=torch.float64) + 0.5) * (high - low) / cells)
    return axes[0], axes[1]
