"""Normalizing flows for vectors: the distribution, four invertible transforms, two architectures.

A flow carries data x to Gaussian noise z through invertible transforms f = f_K ∘ ... ∘
f_1. The change of variables gives the density of x:

    log p(x) = log N(f(x); 0, I) + Σ_k log|det J_k|,   J_k the Jacobian of f_k

Convention: a transform is a module with two methods. Both take (B, dim) and return (B,
dim), (B,).

    forward(x) -> (z, log_det)   data to latent
    inverse(z) -> (x, log_det)   latent to data; this log_det is minus that of forward

What a transform needs but does not learn (masks, permutations, signs) is a buffer, so
it is saved with the weights. An argument that cannot be used raises a ValueError that
names it. The file needs torch alone: copy it and it works. Papers: Dinh et al. (2017),
arXiv:1605.08803 (RealNVP); Kingma and Dhariwal (2018), arXiv:1807.03039 (Glow, the
linear layer).
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

# a coupling's network sees its input cut off here; standardized data reaches about 3
REACH = 10.0
Vector = Sequence[float] | Tensor


class Flow(nn.Module):
    """A distribution over vectors of `dim` entries: transforms, data to latent, then N(0, I).

    Args:
        transforms: modules with `forward` and `inverse`, in the order in which data
            meets them.

    Example:
        >>> flow = realnvp(dim=2, layers=8)
        >>> loss = -flow.log_prob(torch.randn(512, 2)).mean()  # what training minimizes
        >>> x = flow.sample(1000)  # (1000, 2)
    """

    # Where the flow lives, and the floating-point type that it computes in.
    device = property(lambda self: self.base_mean.device)
    dtype = property(lambda self: self.base_mean.dtype)

    def __init__(self, transforms: Iterable[nn.Module], dim: int):
        super().__init__()
        self.dim = _check_count("dim", dim)
        self.transforms = nn.ModuleList(transforms)
        for i, transform in enumerate(self.transforms):
            if getattr(transform, "dim", dim) != dim:
                raise ValueError(
                    f"transforms[{i}] is for dim {transform.dim}, not for dim {dim}"
                )
        self.register_buffer("base_mean", torch.zeros(dim), persistent=False)

    @property
    def config(self) -> dict:
        """Plain types from which `from_config` builds the flow again, without its weights."""
        transforms = [
            [type(transform).__name__, transform.config]
            for transform in self.transforms
        ]
        return dict(dim=self.dim, transforms=transforms)

    @staticmethod
    def from_config(config: dict) -> "Flow":
        """The flow with this `config` and new weights. Raises KeyError for an unknown transform."""
        kinds = (AffineCoupling, InvertibleLinear, PermutationTransform, Standardize)
        by_name = {kind.__name__: kind for kind in kinds}
        transforms = [
            by_name[name](**arguments) for name, arguments in config["transforms"]
        ]
        return Flow(transforms, config["dim"])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent: x (B, dim) -> z (B, dim) and log|det dz/dx| (B,)."""
        return self._apply_in_turn(self.transforms, x, "x")

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data: z (B, dim) -> x (B, dim) and log|det dx/dz| (B,)."""
        steps = [transform.inverse for transform in reversed(self.transforms)]
        return self._apply_in_turn(steps, z, "z")

    def _apply_in_turn(self, steps: Iterable[Callable], x: Tensor, name: str):
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f"{name} must be of shape (B, {self.dim}), not {tuple(x.shape)}"
            )
        total = x.new_zeros(x.shape[0])
        for step in steps:
            x, log_det = step(x)
            total = total + log_det
        return x, total

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = log N(z; 0, I) + log|det dz/dx| in nats: (B, dim) -> (B,)."""
        z, log_det = self(x)
        return (
            log_det - 0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)
        )

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, (n, dim), from Gaussian noise, which is drawn on the generator's device."""
        device = self.device if generator is None else generator.device
        z = torch.randn(
            n, self.dim, generator=generator, dtype=self.dtype, device=device
        )
        return self.inverse(z.to(self.device))[0]

    def trajectory(self, x: Tensor) -> list[Tensor]:
        """x and what it becomes after each transform: len(transforms) + 1 tensors (B, dim)."""
        states = [x]
        for transform in self.transforms:
            states.append(transform(states[-1])[0])
        return states


class AffineCoupling(nn.Module):
    """Scales and shifts some entries, by amounts that a network computes from the other entries.

    z = m ⊙ x + (1 - m) ⊙ (x ⊙ exp s + t),   (s, t) = network(m ⊙ x),   log|det J| = Σ (1 - m) ⊙ s

    The mask m is 1 where an entry passes through unchanged, so the inverse can compute
    s and t too. The network sees its input cut off at ±10, and s = bound · tanh(...).
    So no density overflows far from the data. Source: Dinh et al. (2017),
    arXiv:1605.08803, section 3.4.

    Args:
        mask: (dim,) of 0 and 1, not all 1.
        hidden: widths of the network's hidden layers (ReLU).
        bound: the largest |s|.
    """

    def __init__(
        self, mask: Vector, hidden: Sequence[int] = (32, 32), bound: float = 2.0
    ):
        super().__init__()
        mask = torch.as_tensor(mask)
        if mask.ndim != 1 or mask.all() or not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                f"mask must be a vector of 0 and 1 with a 0, not {mask.tolist()}"
            )
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, not {bound}")
        self.dim, self.bound = len(mask), float(bound)
        hidden = [_check_count("hidden", width) for width in hidden]
        self.config = dict(mask=mask.int().tolist(), hidden=hidden, bound=self.bound)
        self.register_buffer("mask", mask.to(torch.get_default_dtype()))
        layers, widths = [], [self.dim, *hidden, 2 * self.dim]
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])  # no ReLU at the end
        nn.init.zeros_(self.net[-1].weight)  # the coupling starts as the identity
        nn.init.zeros_(self.net[-1].bias)

    def _log_scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net((x * self.mask).clamp(-REACH, REACH)).chunk(
            2, dim=-1
        )
        transformed = 1 - self.mask
        return log_scale.tanh() * (self.bound * transformed), shift * transformed

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift(x)
        return x * log_scale.exp() + shift, log_scale.sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift(z)
        return (z - shift) * (-log_scale).exp(), -log_scale.sum(-1)


class InvertibleLinear(nn.Module):
    """Multiplies by a learned matrix: for vectors, what a 1x1 convolution is for images.

    z = W x,   W = P L U,   diag(U) = sign ⊙ exp d,   log|det W| = Σ d

    P is a fixed permutation, L unit lower and U upper triangular. With these factors
    the determinant is a sum, and W is never singular. W starts as `weight`, else as a
    random rotation. Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.2.
    """

    def __init__(self, dim: int, weight: Tensor | None = None):
        super().__init__()
        self.dim, self.config = _check_count("dim", dim), dict(dim=dim)
        weight = torch.linalg.qr(torch.randn(dim, dim)).Q if weight is None else weight
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

    def _weight(self) -> Tensor:
        lower = self.off_diagonal.tril(-1) + torch.ones_like(self.sign).diag()
        upper = self.off_diagonal.triu(1) + (self.sign * self.log_diagonal.exp()).diag()
        return self.permutation @ lower @ upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self._weight().T, self.log_diagonal.sum().expand(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z @ self._weight().inverse().T, -self.log_diagonal.sum().expand(
            z.shape[0]
        )


class PermutationTransform(nn.Module):
    """Reorders the entries in a fixed way: z_i = x_permutation[i], log|det J| = 0.

    Without a `permutation` a random one is drawn. It is never the identity, unless dim
    is 1.
    """

    def __init__(self, dim: int, permutation: Vector | None = None, generator=None):
        super().__init__()
        self.dim = _check_count("dim", dim)
        identity = torch.arange(dim)
        order = torch.as_tensor(identity if permutation is None else permutation).long()
        while permutation is None and dim > 1 and order.equal(identity):
            order = torch.randperm(dim, generator=generator)
        if not order.sort().values.equal(identity) or (
            dim > 1 and order.equal(identity)
        ):
            raise ValueError(
                f"permutation must reorder 0 ... {dim - 1}, not be {order.tolist()}"
            )
        self.config = dict(dim=dim, permutation=order.tolist())
        self.register_buffer("permutation", order)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.permutation), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.permutation.argsort()), z.new_zeros(z.shape[0])


class Standardize(nn.Module):
    """Gives data mean 0 and standard deviation 1: z = (x - mean) / std, log|det J| = -Σ log std."""

    def __init__(self, mean: Vector, std: Vector):
        super().__init__()
        mean, std = (
            torch.as_tensor(v, dtype=torch.get_default_dtype()) for v in (mean, std)
        )
        usable = mean.ndim == 1 and mean.shape == std.shape
        if not usable or not (mean.isfinite() & std.isfinite() & (std > 0)).all():
            raise ValueError(f"mean must be finite and std positive, not {mean}, {std}")
        self.dim, self.config = len(mean), dict(mean=mean.tolist(), std=std.tolist())
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.std, -self.std.log().sum().expand(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * self.std + self.mean, self.std.log().sum().expand(z.shape[0])


def realnvp(
    dim: int = 2,
    layers: int = 28,
    hidden: Sequence[int] = (32, 32),
    mean=None,
    std=None,
) -> Flow:
    """RealNVP with linear layers: couplings with alternating masks, an `InvertibleLinear` between.

    Args:
        dim, layers: number of entries of a vector; of couplings, enough to miss no
            dimension.
        hidden: widths of each coupling's network.
        mean, std: (dim,) each, of the data; given, the flow standardizes x before the
            couplings.
    """
    transforms = []
    for i in range(_check_count("layers", layers)):
        # In one dimension there is nothing to pass through.
        mask = (
            (torch.arange(dim) + i) % 2 == 0
            if _check_count("dim", dim) > 1
            else torch.zeros(1)
        )
        # The linear layers start as the identity, because the alternating masks mix
        # already.
        transforms += [
            InvertibleLinear(dim, torch.eye(dim)),
            AffineCoupling(mask, hidden),
        ]
    return _build(transforms[1:], dim, mean, std)


def permutation_flow(
    dim: int = 2,
    layers: int = 28,
    hidden: Sequence[int] = (32, 32),
    mean=None,
    std=None,
    seed=None,
) -> Flow:
    """Couplings with one mask, and a fixed random `PermutationTransform` between each two.

    The arguments are those of `realnvp`, and the `seed` of the permutations. Without
    one, they come from torch's global generator.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    mask, transforms = torch.arange(_check_count("dim", dim)) < dim // 2, []
    for _ in range(_check_count("layers", layers)):
        transforms += [
            PermutationTransform(dim, None, generator),
            AffineCoupling(mask, hidden),
        ]
    return _build(transforms[1:], dim, mean, std)


def _build(transforms: list[nn.Module], dim: int, mean, std) -> Flow:
    """Refuses a stack whose couplings miss a dimension, and puts `Standardize` in front."""
    place = torch.arange(dim)  # which of the first layer's entries stands where
    missed = set(range(dim))
    for transform in transforms:
        if isinstance(transform, PermutationTransform):
            place = place[transform.permutation]
        elif isinstance(transform, AffineCoupling):
            missed -= set(place[transform.mask == 0].tolist())
    if missed:
        never = f"layers={len(transforms) // 2 + 1} never transforms dimensions {sorted(missed)}"
        raise ValueError(f"{never}: take more layers or another seed")
    if mean is not None or std is not None:
        mean = torch.zeros(dim) if mean is None else mean
        std = torch.ones(dim) if std is None else std
        transforms = [Standardize(mean, std), *transforms]
    return Flow(transforms, dim)


def _check_count(name: str, value: int) -> int:
    if not isinstance(value, int) or not 1 <= value <= 100_000:
        raise ValueError(f"{name} must be an integer in [1, 100000], not {value!r}")
    return value
