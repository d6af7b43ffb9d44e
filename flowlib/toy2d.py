"""2-D distributions whose density is known exactly.

With an exact density, "how good is the flow" has an absolute answer. A distribution has

    sample(n, generator)   n independent points, (n, 2), in torch's default dtype
    from_uniform(u)        points of numbers in (0, 1), (n, 3) -> (n, 2)
    log_prob(x)            the exact log-density in nats, (B, 2) -> (B,), float64
    entropy()              in nats; no model's expected negative log-likelihood is lower
    bounds(sigmas)         the box that reaches `sigmas` noise levels beyond the points

The two moons are the limit of scikit-learn's `make_moons` for many points.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from flowlib.grids import Bounds, grid

Curve = Callable[[Tensor], Tensor]  # t in [0, 1], (n,) -> points (n, 2)


class NoisyCurves:
    """A point on one of several curves, chosen evenly, plus noise N(0, σ² I).

    log p(x) = log mean over the curves of ∫ N(x; curve(t), σ² I) dt, t in [0, 1], by
    Gauss-Legendre quadrature.

    A subclass says which `curves`: each carries t in [0, 1] to the plane, smoothly. The
    noise σ is at least 0.02; anything else raises a ValueError.

    Example:
        >>> moons = TwoMoons(noise=0.05)
        >>> moons.log_prob(moons.sample(100)).shape
        torch.Size([100])
    """

    curves: Sequence[Curve]

    def __init__(self, noise: float = 0.05):
        if not 0.02 <= noise < math.inf:
            raise ValueError(f"noise must be at least 0.02, not {noise}")
        self.noise = noise

        # Nodes at most 0.6 σ apart integrate a Gaussian of width σ up to rounding.
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        steps = [curve(t).diff(dim=0).norm(dim=1) for curve in self.curves]
        speed = 1000 * torch.cat(steps).max().item()
        count = math.ceil(max(8, 2.6 * speed / noise))
        nodes, weights = np.polynomial.legendre.leggauss(count)
        t = torch.from_numpy((nodes + 1) / 2)
        self._centers = torch.cat([curve(t) for curve in self.curves])
        self._log_weights = torch.from_numpy(np.log(weights / (2 * len(self.curves))))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, (n, 2), independent; `make_moons` spaces its angles evenly."""
        t = torch.rand(n, generator=generator)
        which = torch.randint(len(self.curves), (n,), generator=generator)
        return self._add_noise(which, t, torch.randn(n, 2, generator=generator))

    def from_uniform(self, u: Tensor) -> Tensor:
        """Points of numbers in (0, 1): (n, 3) -> (n, 2). Uniform u give `sample`'s law.

        The first number says which curve and which place on it, the others the noise.
        """
        # A number below 1, times n, is never rounded up to n.
        place = u[:, 0] * len(self.curves)
        which = place.long()
        t = place - which
        points = self._add_noise(which, t, torch.special.ndtri(u[:, 1:]))
        return points.to(torch.get_default_dtype())

    def _add_noise(self, which: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The places `t` (n,) on the curves `which` (n,), plus σ times noise (n, 2)."""
        on_each = torch.stack([curve(t) for curve in self.curves])  # (curves, n, 2)
        return on_each[which, torch.arange(len(t))] + self.noise * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log-density in nats: (B, 2) -> (B,), float64."""
        return self.log_joint(x).logsumexp(1)

    def log_joint(self, x: Tensor) -> Tensor:
        """The exact log p(x, curve) in nats: (B, 2) -> (B, curves), float64."""
        log_p = []
        for part in x.double().split(8192):  # bounds the table of distances
            # The default mode loses digits of small distances.
            exact = "donot_use_mm_for_euclid_dist"
            distance = torch.cdist(part, self._centers, compute_mode=exact) / self.noise
            distance = distance.unflatten(1, (len(self.curves), -1))  # (B, curves, t)
            terms = self._log_weights - 0.5 * distance.square()
            log_p.append(terms.logsumexp(2))
        return torch.cat(log_p) - math.log(2 * math.pi * self.noise**2)

    def entropy(self) -> float:
        """-∫ p log p dx in nats, over a grid."""
        points, area = grid(self.bounds(6.5), spacing=self.noise / 3)
        log_p = self.log_prob(points)
        return float(-(log_p.exp() * log_p).sum() * area)

    def bounds(self, sigmas: float) -> Bounds:
        """The box that reaches `sigmas` noise levels beyond the curves."""
        low, high = self._centers.aminmax(dim=0)
        margin = sigmas * self.noise
        return tuple(torch.stack([low - margin, high + margin], 1).flatten().tolist())


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    """Points (n, 2) at this distance from the origin, in this direction."""
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _half_circle(t: Tensor) -> Tensor:
    """The upper moon."""
    return _polar(1.0, math.pi * t)


class TwoMoons(NoisyCurves):
    """Two half circles: (cos a, sin a) and (1 - cos a, 1/2 - sin a), a = π t."""

    curves = (_half_circle, lambda t: t.new_tensor([1.0, 0.5]) - _half_circle(t))


def _arm(t: Tensor) -> Tensor:
    """One of the two spirals."""
    return _polar(0.2 + 1.3 * t, 3 * math.pi * t)


class Spirals(NoisyCurves):
    """Two arms that wind around the origin one and a half times, out to radius 1.5."""

    curves = (_arm, lambda t: -_arm(t))


class Checkerboard:
    """Uniform over the eight dark squares of a 4x4 board on [-1, 1]². No noise."""

    def __init__(self, noise: float = 0.05):
        self.noise = 0.05  # the scale of grids and margins, whatever is asked for

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent points, (n, 2)."""
        column = torch.randint(4, (n,), generator=generator)
        row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
        corner = torch.stack([column, row], dim=1)
        return (corner + torch.rand(n, 2, generator=generator)) / 2 - 1

    def from_uniform(self, u: Tensor) -> Tensor:
        """Points of numbers in (0, 1): (n, 3) -> (n, 2); the first picks the square."""
        square = (u[:, 0] * 8).long()
        column = square % 4
        row = 2 * (square // 4) + column % 2
        points = (torch.stack([column, row], dim=1) + u[:, 1:]) / 2 - 1
        return points.to(torch.get_default_dtype())

    def log_prob(self, x: Tensor) -> Tensor:
        """log(1/2) on the dark squares, -inf elsewhere: (B, 2) -> (B,), float64."""
        square = ((x.double() + 1) * 2).floor()
        dark = ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)
        return dark.double().log() + math.log(0.5)  # log 0 = -inf

    def entropy(self) -> float:
        """The log of the dark area, nats."""
        return math.log(2)

    def bounds(self, sigmas: float) -> Bounds:
        """The box that reaches 0.05 · `sigmas` beyond the board."""
        end = 1 + sigmas * self.noise
        return -end, end, -end, end


Truth = NoisyCurves | Checkerboard  # both have what the top of this file lists
SHAPES: dict[str, type[Truth]]
SHAPES = {"moons": TwoMoons, "spirals": Spirals, "checkerboard": Checkerboard}
