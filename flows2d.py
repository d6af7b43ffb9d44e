"""Normalizing flows for vectors: the container, five transforms, two architectures.

A flow carries data x to latents z through invertible transforms f = f_K ∘ ... ∘ f_1,
where z has a density that is known, the base. The change of variables gives that of x:

    log p(x) = log p(z) + Σ_k log|det J_k|,   z = f(x),   J_k the Jacobian of f_k

Convention: a transform is a module with two methods. Both take (B, dim) and return (B,
dim), (B,).

    forward(x) -> (z, log_det)   data to latent
    inverse(z) -> (x, log_det)   latent to data; this log_det is minus that of forward

What a transform needs but does not learn (masks, permutations, signs) is a buffer, so
it is saved with the weights. An argument that cannot be used raises a ValueError that
names it. The file needs torch alone: copy it and it works. Papers: Dinh et al. (2017),
arXiv:1605.08803 (RealNVP); Kingma and Dhariwal (2018), arXiv:1807.03039 (Glow, the
linear layer); Durkan et al. (2019), arXiv:1906.04032 (splines).
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

# a coupling's network sees its input cut off here; standardized data reaches about 3
REACH = 10.0
SMALLEST_BIN = 1e-3  # least width and height of a spline's bin, shares of the range
Vector = Sequence[float] | Tensor


class Flow(nn.Module):
    """A distribution of vectors of `dim` entries: transforms and a base.

    Args:
        transforms: modules with `forward` and `inverse`, in the order in which data
            meets them.
        dim: number of entries of a vector.
        base: the distribution of the latents, a module with `log_prob(z)` and
            `sample(n, generator)`; N(0, I) if none is given.

    Example:
        >>> flow = realnvp(dim=2, layers=8)
        >>> loss = -flow.log_prob(torch.randn(512, 2)).mean()  # what training minimizes
        >>> flow.sample(1000).shape
        torch.Size([1000, 2])
    """

    def __init__(
        self, transforms: Iterable[nn.Module], dim: int, base: nn.Module | None = None
    ):
        super().__init__()
        self.dim = _check_count("dim", dim)
        self.base = StandardNormal(dim) if base is None else base
        self.transforms = nn.ModuleList(transforms)

        parts = [("base", self.base)]
        parts += [(f"transforms[{i}]", part) for i, part in enumerate(self.transforms)]
        for name, part in parts:
            if getattr(part, "dim", dim) != dim:
                raise ValueError(f"{name} is for dim {part.dim}, not for dim {dim}")

    @property
    def device(self) -> torch.device:
        """Where the flow lives."""
        return self.base.means.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that the flow computes in."""
        return self.base.means.dtype

    @property
    def config(self) -> dict:
        """Plain types from which `from_config` builds the flow, without its weights."""
        base, *transforms = [
            [type(part).__name__, part.config] for part in (self.base, *self.transforms)
        ]
        return {"dim": self.dim, "base": base, "transforms": transforms}

    @staticmethod
    def from_config(config: dict) -> "Flow":
        """The flow with this `config` and new weights; KeyError for an unknown part."""
        kinds = [AffineCoupling, SplineCoupling, InvertibleLinear, PermutationTransform]
        kinds += [Standardize, StandardNormal, MixtureBase]
        by_name = {kind.__name__: kind for kind in kinds}
        # Flows from before there were bases with modes name none.
        base = config.get("base", ["StandardNormal", {"dim": config["dim"]}])
        base, *transforms = [
            by_name[name](**arguments)
            for name, arguments in (base, *config["transforms"])
        ]
        return Flow(transforms, config["dim"], base)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent: x (B, dim) -> z (B, dim) and log|det dz/dx| (B,)."""
        return self._apply_in_turn(self.transforms, x, "x")

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data: z (B, dim) -> x (B, dim) and log|det dx/dz| (B,)."""
        steps = [transform.inverse for transform in reversed(self.transforms)]
        return self._apply_in_turn(steps, z, "z")

    def _apply_in_turn(
        self, steps: Iterable[Callable], x: Tensor, name: str
    ) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f"{name} must be of shape (B, {self.dim}), not {tuple(x.shape)}"
            )

        # not len(x), which torch.export would make a constant
        total = x.new_zeros(x.shape[0])
        for step in steps:
            x, log_det = step(x)
            total = total + log_det
        return x, total

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = log p(z) + log|det dz/dx| in nats: (B, dim) -> (B,)."""
        z, log_det = self(x)
        return self.base.log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, (n, dim); their noise is drawn on the generator's device."""
        return self.inverse(self.base.sample(n, generator))[0]

    def trajectory(self, x: Tensor) -> list[Tensor]:
        """x, and what it is after each transform: 1 + len(transforms) tensors."""
        states = [x]
        for transform in self.transforms:
            states.append(transform(states[-1])[0])
        return states


class StandardNormal(nn.Module):
    """The base N(0, I): log p(z) = -|z|² / 2 - dim/2 · log 2π."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = _check_count("dim", dim)
        self.config = {"dim": dim}
        self.register_buffer("means", torch.zeros(1, dim), persistent=False)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: (B, dim) -> (B,)."""
        return _log_normal(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n latents, (n, dim), drawn on the generator's device."""
        return _draw_normal((n, self.dim), generator, self.means)

    def weights(self) -> Tensor:
        """The shares of the modes: a single one, (1,)."""
        return self.means.new_ones(1)

    def from_noise(self, noise: Tensor, mode: int) -> Tensor:
        """Latents of a mode from standard normal noise: (B, dim) -> (B, dim)."""
        return noise


class MixtureBase(nn.Module):
    """A base of K Gaussians that are learned: log p(z) = log Σ_k w_k N(z; μ_k, Σ_k).

    A continuous map of one Gaussian cannot tear it, so between separate pieces of data
    thin bridges stay. With a mode for each piece nothing has to be torn. The modes are
    classes too, with p(mode | x). Sources: Stimper et al. (2022), arXiv:2110.15828
    (what a Gaussian base cannot do); Izmailov et al. (2020), arXiv:1912.13025
    (FlowGMM).

    Σ_k⁻¹ = A_k A_kᵀ with A_k upper triangular, so the density needs no matrix inverse:
    log N(z; μ_k, Σ_k) = -|(z - μ_k) A_k|² / 2 + log|det A_k| - dim/2 · log 2π.

    Args:
        means: (K, dim), where the modes start.
        covariances: (K, dim, dim), how wide they start; the identity if none are given.
        weights: (K,), their shares at the start; equal if none are given.

    Example:
        >>> base = MixtureBase([[-2.0, 0.0], [2.0, 0.0]])
        >>> flow = Flow([InvertibleLinear(2)], dim=2, base=base)
        >>> flow.base.responsibilities(flow(torch.zeros(5, 2))[0]).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        covariances: Tensor | None = None,
        weights: Vector | None = None,
    ):
        super().__init__()
        means = _as_floats(means)
        if means.ndim != 2 or not means.isfinite().all():
            raise ValueError(f"means must be finite, of shape (K, dim), not {means}")
        modes, self.dim = means.shape
        if covariances is None:
            covariances = torch.eye(self.dim).expand(modes, -1, -1)
        if weights is None:
            weights = torch.ones(modes) / modes
        covariances, weights = _as_floats(covariances), _as_floats(weights)
        if covariances.shape != (modes, self.dim, self.dim):
            expected = (modes, self.dim, self.dim)
            raise ValueError(f"covariances must be of shape {expected}")
        if weights.shape != (modes,) or not (weights > 0).all():
            raise ValueError(f"weights must be {modes} positive numbers, not {weights}")

        self.config = {"means": means.tolist()}
        lower = torch.linalg.cholesky(covariances.double())
        factors = torch.linalg.inv(lower).mT.to(means.dtype)  # the A_k
        self.means = nn.Parameter(means.clone())
        self.log_diagonal = nn.Parameter(factors.diagonal(dim1=1, dim2=2).log())
        self.off_diagonal = nn.Parameter(factors.triu(1))
        self.log_weights = nn.Parameter(weights.to(means.dtype).log())

    def extra_repr(self) -> str:
        return f"modes={len(self.means)}, dim={self.dim}"

    def weights(self) -> Tensor:
        """The shares of the modes, (K,)."""
        return self.log_weights.softmax(0)

    def _factors(self) -> Tensor:
        return self.off_diagonal.triu(1) + self.log_diagonal.exp().diag_embed()

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(z, mode) in nats: (B, dim) -> (B, K)."""
        noise = (z - self.means[:, None]) @ self._factors()  # (K, B, dim)
        log_share = self.log_weights.log_softmax(0) + self.log_diagonal.sum(1)
        return _log_normal(noise).T + log_share

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: (B, dim) -> (B,)."""
        return self.log_joint(z).logsumexp(1)

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(mode | z), which is p(mode | x) of these latents: (B, dim) -> (B, K)."""
        return self.log_joint(z).softmax(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n latents, (n, dim), drawn on the generator's device."""
        noise = _draw_normal((n, self.dim), generator, self.means)
        shares = self.weights()
        if generator is not None:
            shares = shares.to(generator.device)
        modes = torch.multinomial(shares, n, replacement=True, generator=generator)
        modes = modes.to(noise.device)
        z = torch.empty_like(noise)
        for mode in range(len(self.means)):
            chosen = modes == mode
            z[chosen] = self.from_noise(noise[chosen], mode)
        return z

    def from_noise(self, noise: Tensor, mode: int) -> Tensor:
        """Latents of a mode from standard normal noise: (B, dim) -> (B, dim)."""
        factor = self._factors()[mode]
        scaled = torch.linalg.solve_triangular(factor, noise, upper=True, left=False)
        return self.means[mode] + scaled


def _log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats: (..., dim) -> (...)."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def _draw_normal(
    shape: tuple[int, int], generator: torch.Generator | None, like: Tensor
) -> Tensor:
    """Standard normal noise like `like`, drawn on the generator's device."""
    device = like.device if generator is None else generator.device
    noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=device)
    return noise.to(like.device)


class Coupling(nn.Module):
    """Changes some entries by amounts that a network computes from the rest.

    The mask m is 1 where an entry passes through unchanged, so the inverse can compute
    the same amounts. The network sees m ⊙ x, cut off at ±10, so no density overflows
    far from the data. `AffineCoupling` and `SplineCoupling` say how the entries change.

    Args:
        mask: (dim,) of 0 and 1, not all 1.
        hidden: widths of the network's hidden layers (ReLU).
        outputs: how many numbers the network computes.
    """

    def __init__(self, mask: Tensor, hidden: Sequence[int], outputs: int):
        super().__init__()
        hidden = [_check_count("hidden", width) for width in hidden]
        self.dim = len(mask)
        self.config: dict = {"mask": mask.int().tolist(), "hidden": hidden}
        self.register_buffer("mask", mask.to(torch.get_default_dtype()))

        layers = []
        widths = [self.dim, *hidden, outputs]
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])  # no ReLU at the end
        # With zeros here the coupling starts as the identity.
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.items())

    def _compute(self, x: Tensor) -> Tensor:
        """What the network computes: (B, dim) -> (B, outputs)."""
        # hardtanh cuts off as clamp does, and its gradient takes fewer operations
        return self.net(nn.functional.hardtanh(x * self.mask, -REACH, REACH))


class AffineCoupling(Coupling):
    """Scales and shifts some entries by amounts that a network computes from the rest.

    z = m ⊙ x + (1 - m) ⊙ (x ⊙ exp s + t),   (s, t) = network(m ⊙ x)
    log|det J| = Σ (1 - m) ⊙ s

    The mask m is 1 where an entry passes through unchanged, and s = bound · tanh(...).
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.4.

    Args:
        mask: (dim,) of 0 and 1, not all 1.
        hidden: widths of the network's hidden layers (ReLU).
        bound: the largest |s|.
    """

    def __init__(
        self, mask: Vector, hidden: Sequence[int] = (32, 32), bound: float = 2.0
    ):
        mask = _as_mask(mask)
        super().__init__(mask, hidden, 2 * len(mask))
        self.bound = _check_bound(bound)
        self.config["bound"] = self.bound

    def _log_scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._compute(x).chunk(2, dim=-1)
        transformed = 1 - self.mask
        return log_scale.tanh() * (self.bound * transformed), shift * transformed

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift(x)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale.sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift(z)
        return (z - shift) * (-log_scale).exp(), -log_scale.sum(-1)


class SplineCoupling(Coupling):
    """Sends some entries through splines that a network computes from the rest.

    z = m ⊙ x + (1 - m) ⊙ spline(x),   the spline's bins and slopes = network(m ⊙ x)
    log|det J| = Σ (1 - m) ⊙ log spline'(x)

    The mask m is 1 where an entry passes through unchanged. An affine map of a Gaussian
    is a Gaussian. A spline can split a Gaussian in two, so a few spline couplings do
    what takes many affine ones. Source: Durkan et al. (2019), arXiv:1906.04032.

    Args:
        mask: (dim,) of 0 and 1, not all 1.
        hidden: widths of the network's hidden layers (ReLU).
        bins: of each spline.
        bound: beyond ±bound the splines are the identity.
    """

    def __init__(
        self,
        mask: Vector,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 6.0,
    ):
        mask = _as_mask(mask)
        self.bins = _check_count("bins", bins)
        if bins * SMALLEST_BIN >= 1:
            raise ValueError(f"bins must be below {1 / SMALLEST_BIN:.0f}, not {bins}")
        changed = (mask == 0).nonzero().squeeze(1)
        super().__init__(mask, hidden, (3 * bins - 1) * len(changed))
        self.bound = _check_bound(bound)
        self.config |= {"bins": bins, "bound": self.bound}
        self.register_buffer("changed", changed, persistent=False)

    def _map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters = self._compute(x).unflatten(1, (3 * self.bins - 1, -1))
        sizes, slopes = parameters.split([2 * self.bins, self.bins - 1], dim=1)
        changed = x.index_select(1, self.changed)
        changed, log_slope = spline(changed, sizes, slopes, self.bound, inverse)
        return x.index_copy(1, self.changed, changed), log_slope.sum(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(x, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, inverse=True)


def spline(
    x: Tensor,
    sizes: Tensor,
    slopes: Tensor,
    bound: float,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline on [-bound, bound], and log dy/dx.

    Outside y = x. The range is cut into bins. In a bin of width w and height h the
    curve goes from (x₀, y₀), with slope d₀, to (x₀ + w, y₀ + h), with slope d₁. Let
    s = h / w and t = (x - x₀) / w in [0, 1]:

        y = y₀ + h (s t² + d₀ t (1 - t)) / (s + (d₀ + d₁ - 2 s) t (1 - t))

    The inverse solves this for t, a quadratic equation (Durkan et al. 2019, section
    3.1).

    Args:
        x: (B, ...), any shape.
        sizes: (B, 2·bins, ...): the bins' log-widths, then their log-heights, not
            normalized.
        slopes: (B, bins - 1, ...): log-slopes where two bins meet, softly bounded by
            ±4.
    Returns:
        y, of x's shape, and log dy/dx entry by entry. If all parameters are zero,
        y = x.
    """
    inside = x.abs() < bound
    u = torch.where(inside, x, 0) / (2 * bound) + 0.5  # [-bound, bound] -> [0, 1]
    (left, bottom), (width, height), (d0, d1) = _bin_of(u, sizes, slopes, inverse)
    slope = height / width  # s, the bin's mean slope
    bend = d0 + d1 - 2 * slope  # 0 if the curve is straight

    # How far the place is along its bin: t in [0, 1].
    if inverse:  # a t² + b t + c = 0; this form of its root loses no digits
        y = u - bottom
        a = y * bend + height * (slope - d0)
        b = height * d0 - y * bend
        c = -slope * y
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())
    else:
        t = (u - left) / width
    curve = t * (1 - t)
    denominator = slope + bend * curve
    if inverse:
        y = left + width * t
    else:
        y = bottom + height * (slope * t * t + d0 * curve) / denominator

    # dy/dx = s² (d₁ t² + 2 s t (1 - t) + d₀ (1 - t)²) / denominator²
    rise = d1 * t * t + 2 * slope * curve + d0 * (1 - t) ** 2
    log_slope = (slope**2 * rise / denominator**2).log()
    y = torch.where(inside, (2 * y - 1) * bound, x)  # [0, 1] -> [-bound, bound]
    return y, torch.where(inside, -log_slope if inverse else log_slope, 0)


def _bin_of(
    u: Tensor,
    sizes: Tensor,
    slopes: Tensor,
    inverse: bool,
) -> tuple[tuple, tuple, tuple]:
    """u's bin in [0, 1]: its corner (x₀, y₀), its size (w, h), its slopes (d₀, d₁)."""
    bins = slopes.shape[1] + 1
    rest = u.ndim - 1
    # Each bin has the least size; the softmax shares out what is left of the range:
    # widths and heights, (B, 2, bins, ...).
    sizes = sizes.unflatten(1, (2, bins)).softmax(2)
    left_over = 1 - bins * SMALLEST_BIN
    # Slope 1 at both ends of the range, so that the spline joins the identity smoothly:
    # log-slopes (B, bins + 1, ...), log 1 = 0.
    slopes = nn.functional.pad(slopes, (0, 0) * rest + (1, 1))

    # The bin's index has no gradient. The inverse looks for it along y.
    k = torch.arange(bins, device=u.device).reshape(-1, *[1] * rest)  # (bins, 1, ...)
    with torch.no_grad():
        axis = sizes[:, 1 if inverse else 0]  # (B, bins, ...)
        edges = left_over * axis[:, :-1].cumsum(1) + SMALLEST_BIN * k[1:]
        bin = (edges <= u[:, None]).sum(1, keepdim=True)  # (B, 1, ...)
        before = (k < bin).to(u.dtype)  # (B, bins, ...): 1 for the bins before it

    # A bin's corner is the sum of all widths and heights before it: (B, 2, ...).
    corner = left_over * (sizes * before[:, None]).sum(2) + SMALLEST_BIN * bin
    chosen = bin[:, None].expand(-1, 2, *bin.shape[1:])  # (B, 2, 1, ...)
    size = left_over * sizes.gather(2, chosen).squeeze(2) + SMALLEST_BIN  # (B, 2, ...)
    ends = slopes.gather(1, torch.cat([bin, bin + 1], 1))  # (B, 2, ...)
    return corner.unbind(1), size.unbind(1), (4 * torch.tanh(ends / 4)).exp().unbind(1)


class InvertibleLinear(nn.Module):
    """Multiplies by a learned matrix: what a 1x1 convolution is for images.

    z = W x,   W = P L U,   diag(U) = sign ⊙ exp d,   log|det W| = Σ d

    P is a fixed permutation, L unit lower and U upper triangular. With these factors
    the determinant is a sum, and W is never singular. W starts as `weight`, else as a
    random rotation. Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.2.
    """

    def __init__(self, dim: int, weight: Tensor | None = None):
        super().__init__()
        self.dim = _check_count("dim", dim)
        self.config = {"dim": dim}
        if weight is None:
            weight = torch.linalg.qr(torch.randn(dim, dim)).Q
        if weight.shape != (dim, dim) or not weight.det().abs() > 0:
            raise ValueError(
                f"weight must be an invertible {dim}x{dim} matrix, not {weight}"
            )

        permutation, lower, upper = torch.linalg.lu(weight)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diagonal().sign())
        # L and U share a matrix
        self.off_diagonal = nn.Parameter(lower.tril(-1) + upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())

    def extra_repr(self) -> str:
        return f"dim={self.dim}"

    def _weight(self) -> Tensor:
        diagonal = (self.sign * self.log_diagonal.exp()).diag()
        upper = self.off_diagonal.triu(1) + diagonal
        below = self.off_diagonal.tril(-1)  # L without its diagonal of ones
        return torch.addmm(self.permutation, self.permutation, below) @ upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = nn.functional.linear(x, self._weight())
        return z, self.log_diagonal.sum().expand(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z @ self._weight().inverse().T, -self.log_diagonal.sum().expand(
            z.shape[0]
        )


class PermutationTransform(nn.Module):
    """Reorders the entries in a fixed way: z_i = x_permutation[i], log|det J| = 0.

    Without a `permutation` a random one is drawn, which is never the identity, unless
    dim is 1.
    """

    def __init__(
        self,
        dim: int,
        permutation: Vector | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.dim = _check_count("dim", dim)
        if permutation is None:
            permutation = _random_permutation(dim, generator)
        permutation = torch.as_tensor(permutation).long()
        identity = torch.arange(dim)
        is_one = permutation.sort().values.equal(identity)
        if not is_one or (dim > 1 and permutation.equal(identity)):
            found = permutation.tolist()
            raise ValueError(
                f"permutation must reorder 0 ... {dim - 1}, not be {found}"
            )

        self.config = {"dim": dim, "permutation": permutation.tolist()}
        self.register_buffer("permutation", permutation)

    def extra_repr(self) -> str:
        return f"permutation={self.config['permutation']}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.permutation), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.permutation.argsort()), z.new_zeros(z.shape[0])


class Standardize(nn.Module):
    """Gives data mean 0 and standard deviation 1.

    z = (x - mean) / std,   log|det J| = -Σ log std

    `mean` and `std`, (dim,) each, keep their digits: given in float64 they stay so, and
    what is computed with them is rounded to the type of x.
    """

    def __init__(self, mean: Vector, std: Vector):
        super().__init__()
        mean, std = _as_floats(mean), _as_floats(std)
        usable = mean.ndim == 1 and mean.shape == std.shape
        if not usable or not (mean.isfinite() & std.isfinite() & (std > 0)).all():
            raise ValueError(f"mean must be finite and std positive, not {mean}, {std}")

        self.dim = len(mean)
        self.config = {"mean": mean.tolist(), "std": std.tolist()}
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = ((x - self.mean) / self.std).to(x.dtype)
        return z, -self.std.log().sum().to(x.dtype).expand(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = (z * self.std + self.mean).to(z.dtype)
        return x, self.std.log().sum().to(z.dtype).expand(z.shape[0])


def realnvp(
    dim: int = 2,
    layers: int = 20,
    hidden: Sequence[int] = (32, 32),
    mean: Vector | None = None,
    std: Vector | None = None,
    modes: int = 1,
    bins: int = 0,
) -> Flow:
    """Couplings with alternating masks, an `InvertibleLinear` between each two.

    Args:
        dim: number of entries of a vector.
        layers: number of couplings, enough to transform every entry.
        hidden: widths of each coupling's network.
        mean, std: (dim,) each, of the data; given, the flow standardizes x before the
            couplings.
        modes: of the base; N(0, I) for one, otherwise a `MixtureBase`.
        bins: of the couplings' splines; without any the couplings are affine, as in
            RealNVP's paper.
    """
    transforms = _start(dim, layers, mean, std)
    for i in range(layers):
        if i > 0:
            # It starts as the identity, because the alternating masks mix already.
            transforms.append(InvertibleLinear(dim, torch.eye(dim)))
        # In one dimension there is nothing to pass through.
        mask = (torch.arange(dim) + i) % 2 == 0 if dim > 1 else torch.zeros(1)
        transforms.append(_coupling(mask, hidden, bins))
    return _require_all_transformed(Flow(transforms, dim, _base(dim, modes)))


def permutation_flow(
    dim: int = 2,
    layers: int = 20,
    hidden: Sequence[int] = (32, 32),
    mean: Vector | None = None,
    std: Vector | None = None,
    modes: int = 1,
    seed: int | None = None,
    bins: int = 0,
) -> Flow:
    """Couplings with one mask, a fixed random `PermutationTransform` between each two.

    The arguments are those of `realnvp`, and the `seed` of the permutations. Without
    one, they come from torch's global generator.
    """
    transforms = _start(dim, layers, mean, std)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    mask = torch.arange(dim) < dim // 2
    for i in range(layers):
        if i > 0:
            transforms.append(PermutationTransform(dim, generator=generator))
        transforms.append(_coupling(mask, hidden, bins))
    return _require_all_transformed(Flow(transforms, dim, _base(dim, modes)))


def _start(
    dim: int, layers: int, mean: Vector | None, std: Vector | None
) -> list[nn.Module]:
    """An architecture's first transform, if mean or std are given; checks its sizes."""
    _check_count("dim", dim)
    _check_count("layers", layers)
    if mean is None and std is None:
        return []
    mean = torch.zeros(dim) if mean is None else mean
    std = torch.ones(dim) if std is None else std
    return [Standardize(mean, std)]


def _coupling(mask: Tensor, hidden: Sequence[int], bins: int) -> Coupling:
    """One with splines of this many bins, or an affine one."""
    return SplineCoupling(mask, hidden, bins) if bins else AffineCoupling(mask, hidden)


def _base(dim: int, modes: int) -> nn.Module:
    """N(0, I), or modes at distance 2 from 0: on a circle, or on a line if dim is 1."""
    if _check_count("modes", modes) == 1:
        return StandardNormal(dim)
    means = torch.zeros(modes, dim)
    if dim == 1:
        means[:, 0] = torch.linspace(-2, 2, modes)
    else:
        angle = torch.arange(modes) * (2 * math.pi / modes)
        means[:, 0] = 2 * angle.cos()
        means[:, 1] = 2 * angle.sin()
    return MixtureBase(means)


def _require_all_transformed(flow: Flow) -> Flow:
    """The flow itself; ValueError if its couplings never transform some entry."""
    place = torch.arange(flow.dim)  # which of the first layer's entries stands where
    missed = set(range(flow.dim))
    couplings = 0
    for transform in flow.transforms:
        if isinstance(transform, PermutationTransform):
            place = place[transform.permutation]
        elif isinstance(transform, Coupling):
            missed -= set(place[transform.mask == 0].tolist())
            couplings += 1

    if missed:
        never = f"layers={couplings} never transforms dimensions {sorted(missed)}"
        raise ValueError(f"{never}: take more layers or another seed")
    return flow


def _random_permutation(dim: int, generator: torch.Generator | None) -> Tensor:
    """A random order of 0 ... dim - 1 that is not the identity, unless dim is 1."""
    while True:
        order = torch.randperm(dim, generator=generator)
        if dim == 1 or not order.equal(torch.arange(dim)):
            return order


def _as_floats(vector: Sequence | Tensor) -> Tensor:
    """The numbers as a tensor, in its own floating-point type if it is one."""
    vector = torch.as_tensor(vector)
    return (
        vector if vector.is_floating_point() else vector.to(torch.get_default_dtype())
    )


def _as_mask(mask: Vector) -> Tensor:
    """A coupling's mask; ValueError unless it is of 0 and 1, with a 0."""
    mask = torch.as_tensor(mask)
    if mask.ndim != 1 or mask.all() or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"mask must be a vector of 0 and 1 with a 0, not {mask.tolist()}"
        )
    return mask


def _check_bound(bound: float) -> float:
    if not 0 < bound < math.inf:
        raise ValueError(f"bound must be positive and finite, not {bound}")
    return float(bound)


def _check_count(name: str, value: int) -> int:
    if not isinstance(value, int) or not 1 <= value <= 100_000:
        raise ValueError(f"{name} must be an integer in [1, 100000], not {value!r}")
    return value
