"""2-D data: the user's points, and distributions whose density is known exactly, so that "how good is the flow" has an absolute answer.

Each distribution has `sample(n, generator)`, `log_prob(x)`, `entropy()`, which no model's expected negative log-likelihood is below, and
`bounds(sigmas)`, the box that holds it. The two moons are scikit-learn's `make_moons` as the number of points grows.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowlib.files import UserError
from flowlib.grids import Bounds, grid

Curve = Callable[[Tensor], Tensor]  # t in [0, 1], (n,) -> points (n, 2)


class NoisyCurves:
    """A point on one of several curves, chosen evenly, t uniform on [0, 1], plus noise N(0, σ² I).

    log p(x) = log mean over the curves of ∫ N(x; curve(t), σ² I) dt, by Gauss-Legendre quadrature in float64.

    Args:
        curves: each carries t in [0, 1] to the plane, smoothly.
        noise: σ, >= 0.02.
    Raises:
        ValueError: if noise is out of range.
    """

    def __init__(self, curves: Sequence[Curve], noise: float):
        if not 0.02 <= noise < math.inf:
            raise ValueError(f"noise must be at least 0.02, not {noise}")
        self.curves, self.noise = curves, noise
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        speed = max(curve(t).diff(dim=0).norm(dim=1).max().item() * 1000 for curve in curves)
        # Nodes at most 0.6 σ apart integrate a Gaussian of width σ exactly, up to rounding.
        nodes, weights = np.polynomial.legendre.leggauss(math.ceil(max(8, 2.6 * speed / noise)))
        self._centres = torch.cat([curve(torch.from_numpy((nodes + 1) / 2)) for curve in curves])
        self._log_weights = torch.from_numpy(np.log(weights / (2 * len(curves)))).repeat(len(curves))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent points, (n, 2) in torch's default dtype.

        `make_moons` spaces its angles evenly, so that small batches of it are not independent; here every t is drawn.
        """
        t = torch.rand(n, generator=generator)
        which = torch.randint(len(self.curves), (n,), generator=generator)
        points = torch.stack([curve(t) for curve in self.curves])[which, torch.arange(n)]
        return points + self.noise * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log-density in nats: (B, 2) -> (B,), float64."""
        normaliser = math.log(2 * math.pi * self.noise**2)
        log_p = []
        for chunk in x.double().split(8192):  # bounds the table of distances
            distance = torch.cdist(chunk, self._centres, compute_mode="donot_use_mm_for_euclid_dist") / self.noise
            log_p.append(torch.logsumexp(self._log_weights - 0.5 * distance.square(), dim=1) - normaliser)
        return torch.cat(log_p)

    def entropy(self) -> float:
        """-∫ p log p dx in nats, over a grid."""
        points, area = grid(self.bounds(6.5), spacing=self.noise / 3)
        log_p = self.log_prob(points)
        return float(-(log_p.exp() * log_p).sum() * area)

    def bounds(self, sigmas: float) -> Bounds:
        """The box that reaches `sigmas` noise levels beyond the curves."""
        low, high = self._centres.min(0).values - sigmas * self.noise, self._centres.max(0).values + sigmas * self.noise
        return (low[0].item(), high[0].item(), low[1].item(), high[1].item())


class TwoMoons(NoisyCurves):
    """Two half circles: the upper one (cos a, sin a), the lower one (1 - cos a, 1/2 - sin a), a = π t."""

    def __init__(self, noise: float = 0.05):
        def upper(t: Tensor) -> Tensor:
            return torch.stack([(math.pi * t).cos(), (math.pi * t).sin()], dim=-1)

        def lower(t: Tensor) -> Tensor:
            return torch.stack([1 - (math.pi * t).cos(), 0.5 - (math.pi * t).sin()], dim=-1)

        super().__init__((upper, lower), noise)


class Circles(NoisyCurves):
    """Two circles around the origin, of radius 1 and 1/2."""

    def __init__(self, noise: float = 0.05):
        def circle(radius: float) -> Curve:
            return lambda t: radius * torch.stack([(2 * math.pi * t).cos(), (2 * math.pi * t).sin()], dim=-1)

        super().__init__((circle(1.0), circle(0.5)), noise)


class Spirals(NoisyCurves):
    """Two arms that wind around the origin one and a half times, out to radius 1.5."""

    def __init__(self, noise: float = 0.05):
        def arm(sign: int) -> Curve:
            def curve(t: Tensor) -> Tensor:
                radius, angle = 0.2 + 1.3 * t, 3 * math.pi * t
                return sign * torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)

            return curve

        super().__init__((arm(1), arm(-1)), noise)


class Checkerboard:
    """Uniform over the eight dark squares of a 4x4 board on [-1, 1]²; it has no noise, and density 0 elsewhere."""

    noise = 0.05  # the scale that grids and margins go by

    def __init__(self, noise: float = 0.05):
        """Takes `noise` as the other shapes do, and has no use for it."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent points, (n, 2) in torch's default dtype."""
        column = torch.randint(4, (n,), generator=generator)
        row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
        return (torch.stack([column, row], dim=1) + torch.rand(n, 2, generator=generator)) / 2 - 1

    def log_prob(self, x: Tensor) -> Tensor:
        """log(1/2) on the dark squares, -inf elsewhere: (B, 2) -> (B,), float64."""
        square = ((x.double() + 1) * 2).floor()
        dark = ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)
        return torch.full(dark.shape, math.log(0.5), dtype=torch.float64, device=x.device).masked_fill(~dark, -math.inf)

    def entropy(self) -> float:
        """The log of the area, nats."""
        return math.log(2)

    def bounds(self, sigmas: float) -> Bounds:
        """The box that reaches 0.05 · `sigmas` beyond the board."""
        margin = sigmas * self.noise
        return (-1 - margin, 1 + margin, -1 - margin, 1 + margin)


SHAPES = {"moons": TwoMoons, "circles": Circles, "spirals": Spirals, "checkerboard": Checkerboard}


# ---------------------------------------------------------------- the user's points


def read_points(path: Path) -> np.ndarray:
    """An (N, 2) array from a .npy or .csv file (a header line is skipped); raises UserError if it is not one of finite numbers."""
    try:
        if path.suffix == ".npy":
            points = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            with open(path, encoding="utf-8") as lines:
                first = lines.readline().split(",")[0].strip()
            header = not first.lstrip("+-.")[:1].isdigit() and first.lower() not in ("nan", "inf", "-inf")
            points = np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2)
        else:
            raise UserError(f"{path}: --data takes a .npy or .csv file")
        points = points.astype(np.float64)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot read points from {path}: {reason}") from None
    if points.ndim != 2 or points.shape[1] != 2:
        raise UserError(f"{path} must hold two columns, one point a row; its shape is {points.shape}")
    if not np.isfinite(points).all():
        raise UserError(
            f"{path} holds NaN or infinite values, first in row {int(np.argmin(np.isfinite(points).all(1))) + 1}: remove those rows"
        )
    if len(points) < 100:
        raise UserError(f"{path} holds {len(points)} points; at least 100 are needed to train, hold out and test")
    if (points.std(0) == 0).any():
        raise UserError(f"{path}: a column is constant, so the points have no density in the plane")
    return points
