"""Normalizing flows for vectors: the container, three invertible layers and two architectures.

A flow carries data x to Gaussian noise z through invertible transforms f = f_K ∘ ... ∘ f_1. By the change of variables

    log p(x) = log N(f(x); 0, I) + Σ_k log|det J_k|,

so a transform is a module with two methods, both from (B, dim) to (B, dim) and (B,):

    forward(x) -> (z, log_det)   data to latent,
    inverse(z) -> (x, log_det)   latent to data; log_det is that of the inverse, minus the forward one.

Papers: Dinh et al. (2017), arXiv:1605.08803 (RealNVP); Kingma and Dhariwal (2018), arXiv:1807.03039 (Glow, the linear layer).
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flowlib.files import load_model, save_checkpoint

REACH = 10.0  # a coupling's network sees its input cut off at ±REACH, so that its outputs are bounded; data is standardised, to about ±3


class _CouplingNetwork(torch.autograd.Function):
    """An `AffineCoupling`'s network as one node of autograd's graph: a node an operation makes a training step a third slower.

    h_0 = clip(m ⊙ x, ±REACH),   h_i = relu(W_i h_{i-1} + b_i),   (a, t) = W_n h_{n-1} + b_n
    log_scale = bound · tanh((1 - m) ⊙ a),   shift = (1 - m) ⊙ t

    Takes x (B, dim), the mask, the bound and W_1, b_1, ..., W_n, b_n; gives log_scale and shift, (B, dim) each. First derivatives only.
    """

    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, bound: float, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        weights, biases = parameters[::2], parameters[1::2]
        inputs = [(x * mask).clamp_(-REACH, REACH)]  # of each linear layer
        for weight, bias in zip(weights[:-1], biases):
            inputs.append(torch.addmm(bias, inputs[-1], weight.T).relu_())
        log_scale, shift = torch.addmm(biases[-1], inputs[-1], weights[-1].T).chunk(2, dim=-1)
        transformed = 1 - mask
        log_scale = (log_scale * transformed).tanh_().mul_(bound)
        ctx.save_for_backward(mask, transformed, log_scale, *weights, *inputs)
        ctx.bound = bound
        return log_scale, shift * transformed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_log_scale: Tensor, grad_shift: Tensor) -> tuple[Tensor | None, ...]:
        mask, transformed, log_scale, *saved = ctx.saved_tensors
        weights, inputs = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        slope = ctx.bound - log_scale.square() / ctx.bound  # bound · tanh' = bound · (1 - tanh²)
        grad = torch.cat([grad_log_scale * slope, grad_shift], dim=1) * transformed.repeat(2)
        grads = []  # of W_1, b_1, ..., filled from the end
        for i in reversed(range(len(weights))):
            # The narrow factor goes first: with a few columns in the second one, the product takes five times as long.
            narrow = inputs[i].shape[1] < grad.shape[1]
            grad_weight = (inputs[i].T @ grad).T if narrow else grad.T @ inputs[i]
            grads = [grad_weight, grad.sum(0), *grads]
            if i > 0:
                grad = (grad @ weights[i]).mul_(inputs[i].sign())  # relu' is 1 where its output is positive, else 0
        grad_x = nn.functional.linear(grad, weights[0].T.contiguous()) * (inputs[0].abs() < REACH) * mask
        return grad_x, None, None, *grads


class AffineCoupling(nn.Module):
    """Leaves the entries where `mask` is 1 as they are, and scales and shifts the others as a function of those.

    z = m ⊙ x + (1 - m) ⊙ (x ⊙ exp s(m ⊙ x) + t(m ⊙ x)),   log|det J| = Σ (1 - m) ⊙ s(m ⊙ x)

    s and t come from one network, which sees m ⊙ x cut off at ±10; s = bound · tanh(...). So no density overflows far from the data.
    Source: Dinh et al. (2017), arXiv:1605.08803, section 3.4.

    Args:
        mask: (dim,) of 0 and 1, not all 1.
        hidden: widths of the network's hidden layers (ReLU).
        bound: the largest |s|.
    Raises:
        ValueError: names the argument that cannot be used.
    """

    def __init__(self, mask: Sequence[int] | Tensor, hidden: Sequence[int] = (32, 32), bound: float = 2.0):
        super().__init__()
        mask = torch.as_tensor(mask)
        if mask.ndim != 1 or len(mask) == 0 or not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"mask must be a vector of 0 and 1, not {mask.tolist()}")
        if mask.all():
            raise ValueError("mask must leave at least one entry 0: with all 1 nothing is transformed")
        if any(int(width) != width or width < 1 for width in hidden):
            raise ValueError(f"hidden must be positive widths, not {tuple(hidden)}")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, not {bound}")
        self.dim, self.hidden, self.bound = len(mask), [int(width) for width in hidden], float(bound)
        self.register_buffer("mask", mask.to(torch.get_default_dtype()))
        widths = [self.dim, *self.hidden, 2 * self.dim]
        self.net = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:]))  # with ReLU between them
        nn.init.zeros_(self.net[-1].weight)  # the coupling starts as the identity
        nn.init.zeros_(self.net[-1].bias)

    @property
    def config(self) -> dict:
        return dict(mask=self.mask.int().tolist(), hidden=self.hidden, bound=self.bound)

    def _log_scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parameters = [parameter for linear in self.net for parameter in (linear.weight, linear.bias)]
        return _CouplingNetwork.apply(x, self.mask, self.bound, *parameters)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift(x)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale.sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift(z)
        return (z - shift) * (-log_scale).exp(), -log_scale.sum(-1)


class InvertibleLinear(nn.Module):
    """Multiplies by a learned matrix, kept in factors: a 1x1 convolution for vectors.

    z = W x,   W = P L U,   diag(U) = sign ⊙ exp d,   log|det W| = Σ d

    with P a fixed permutation, L unit lower and U upper triangular: neither direction factorises or inverts a matrix.
    Source: Kingma and Dhariwal (2018), arXiv:1807.03039, section 3.2.

    Args:
        dim: number of entries.
        weight: (dim, dim), what W starts as; None takes a random rotation.
    Raises:
        ValueError: if dim is not a positive integer, or weight not an invertible matrix of that size.
    """

    def __init__(self, dim: int, weight: Tensor | None = None):
        super().__init__()
        self.dim = _check_dim(dim)
        if weight is None:
            weight = torch.linalg.qr(torch.randn(dim, dim)).Q
        if weight.shape != (dim, dim) or not weight.det().abs() > 0:
            raise ValueError(f"weight must be an invertible {dim}x{dim} matrix, not {weight.tolist()}")
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal = upper.diagonal()
        # What is fixed but needed to invert is a buffer: it must travel with the weights.
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign().diag())
        self.register_buffer("identity", torch.eye(dim), persistent=False)
        self.register_buffer("below_diagonal", torch.ones(dim, dim).tril(-1), persistent=False)
        self.off_diagonal = nn.Parameter(lower.tril(-1) + upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())

    @property
    def config(self) -> dict:
        return dict(dim=self.dim)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = torch.addcmul(self.identity, self.off_diagonal, self.below_diagonal)
        upper = torch.addcmul(self.sign * self.log_diagonal.exp(), self.off_diagonal, self.below_diagonal.T)
        return lower, upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        return nn.functional.linear(x, self.permutation @ lower @ upper), self.log_diagonal.sum().expand(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        # W⁻¹ = U⁻¹ L⁻¹ Pᵀ: the solves see dim right-hand sides instead of one a point
        inverse = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse, upper=True)
        return nn.functional.linear(z, inverse), -self.log_diagonal.sum().expand(len(z))


class PermutationTransform(nn.Module):
    """Reorders the entries in a fixed, random way, never the identity for dim > 1; log|det J| = 0.

    Args:
        dim: number of entries.
        seed: makes the random order reproducible; None draws from torch's global generator.
        permutation: this order instead of a random one: z_i = x_permutation[i].
    Raises:
        ValueError: names the argument that cannot be used.
    """

    def __init__(self, dim: int, seed: int | None = None, permutation: Sequence[int] | Tensor | None = None):
        super().__init__()
        self.dim = _check_dim(dim)
        identity = torch.arange(dim)
        if permutation is None:
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            permutation = torch.randperm(dim, generator=generator)
            while dim > 1 and permutation.equal(identity):
                permutation = torch.randperm(dim, generator=generator)
        else:
            permutation = torch.as_tensor(permutation).long()
            if not permutation.sort().values.equal(identity):
                raise ValueError(f"permutation must hold each of 0 ... {dim - 1} once, not {permutation.tolist()}")
            if dim > 1 and permutation.equal(identity):
                raise ValueError("permutation must not be the identity: it would do nothing")
        self.register_buffer("permutation", permutation)

    @property
    def config(self) -> dict:
        return dict(dim=self.dim, permutation=self.permutation.tolist())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.permutation), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.permutation.argsort()), z.new_zeros(len(z))


class Standardise(nn.Module):
    """Subtracts a fixed mean and divides by a fixed standard deviation: z = (x - mean) / std, log|det J| = -Σ log std.

    Raises:
        ValueError: if mean and std are not finite vectors of one length, or std is not positive.
    """

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor):
        super().__init__()
        mean, std = (torch.as_tensor(value, dtype=torch.get_default_dtype()) for value in (mean, std))
        if mean.ndim != 1 or mean.shape != std.shape or not mean.isfinite().all():
            raise ValueError(f"mean and std must be finite vectors of one length, not {mean.tolist()} and {std.tolist()}")
        if not (std.isfinite() & (std > 0)).all():
            raise ValueError(f"std must be positive and finite, not {std.tolist()}")
        self.dim = len(mean)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @property
    def config(self) -> dict:
        return dict(mean=self.mean.tolist(), std=self.std.tolist())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.std, -self.std.log().sum().expand(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * self.std + self.mean, self.std.log().sum().expand(len(z))


class Flow(nn.Module):
    """A distribution over vectors: invertible transforms, data to latent, on top of a standard normal base.

    Args:
        transforms: any number of modules with `forward` and `inverse`, in the order in which data meets them.
        dim: number of entries of a vector, >= 1.
    Raises:
        ValueError: if dim is not a positive integer, or a transform is for another dim.
    """

    def __init__(self, transforms: Iterable[nn.Module], dim: int):
        super().__init__()
        self.dim = _check_dim(dim)
        self.transforms = nn.ModuleList(transforms)
        for i, transform in enumerate(self.transforms):
            if getattr(transform, "dim", dim) != dim:
                raise ValueError(f"transforms[{i}] is for dim {transform.dim}, the flow for dim {dim}")
        self.register_buffer("base_mean", torch.zeros(dim), persistent=False)  # knows the flow's dtype and device

    @property
    def config(self) -> dict:
        """What `load_flow` rebuilds the flow from: plain types only."""
        return dict(dim=self.dim, transforms=[[type(transform).__name__, transform.config] for transform in self.transforms])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent: x (B, dim) -> z (B, dim) and log|det dz/dx| (B,)."""
        self._check(x, "x")
        log_det = x.new_zeros(len(x))
        for transform in self.transforms:
            x, step = transform(x)
            log_det = log_det + step
        return x, log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data: z (B, dim) -> x (B, dim) and log|det dx/dz| (B,)."""
        self._check(z, "z")
        log_det = z.new_zeros(len(z))
        for transform in reversed(self.transforms):
            z, step = transform.inverse(z)
            log_det = log_det + step
        return z, log_det

    def trajectory(self, x: Tensor) -> list[Tensor]:
        """x and what it becomes after each transform, x first, z last: len(transforms) + 1 tensors (B, dim)."""
        self._check(x, "x")
        states = [x]
        for transform in self.transforms:
            states.append(transform(states[-1])[0])
        return states

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = log N(z; 0, I) + log|det dz/dx| in nats: (B, dim) -> (B,)."""
        z, log_det = self(x)
        return -0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi) + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, (n, dim), from Gaussian noise; the generator must live on the flow's device."""
        z = torch.randn(n, self.dim, generator=generator, dtype=self.base_mean.dtype, device=self.base_mean.device)
        return self.inverse(z)[0]

    def _check(self, x: Tensor, name: str) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"{name} must be of shape (B, {self.dim}), not {tuple(x.shape)}")


# ---------------------------------------------------------------- the two architectures


def realnvp(
    dim: int = 2,
    layers: int = 28,
    hidden: Sequence[int] = (32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Flow:
    """RealNVP with linear layers: couplings whose masks alternate, an `InvertibleLinear` between each two.

    Args:
        dim: number of entries of a vector.
        layers: number of couplings.
        hidden: widths of each coupling's network.
        mean, std: (dim,) each, of the data; given, the flow standardises inside and still speaks the data's coordinates.
    Raises:
        ValueError: names the argument that cannot be used; too few layers leave a dimension untransformed.
    """
    _check_dim(dim)
    transforms: list[nn.Module] = []
    for i in range(_check_layers(layers)):
        if i > 0:
            transforms.append(InvertibleLinear(dim, torch.eye(dim)))  # the alternating masks mix already
        mask = (torch.arange(dim) + i) % 2 == 0 if dim > 1 else torch.zeros(1)  # nothing to condition on in one dimension
        transforms.append(AffineCoupling(mask, hidden))
    return _build(transforms, dim, mean, std)


def permutation_flow(
    dim: int = 2,
    layers: int = 28,
    hidden: Sequence[int] = (32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
) -> Flow:
    """Couplings that share one mask, with a fixed random `PermutationTransform` between each two.

    Args:
        seed: of the permutations; None draws from torch's global generator. The others as in `realnvp`.
    Raises:
        ValueError: as in `realnvp`; also if these permutations never bring some dimension under the mask's zeros.
    """
    _check_dim(dim)
    transforms: list[nn.Module] = []
    for i in range(_check_layers(layers)):
        if i > 0:
            transforms.append(PermutationTransform(dim, seed=None if seed is None else seed + i))
        transforms.append(AffineCoupling(torch.arange(dim) < dim // 2, hidden))
    return _build(transforms, dim, mean, std)


def _build(transforms: list[nn.Module], dim: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Flow:
    """Refuses a stack whose couplings miss a dimension, and puts the standardisation in front."""
    position_of = torch.arange(dim)  # which of the first layer's entries stands where
    missed = set(range(dim))
    for transform in transforms:
        if isinstance(transform, PermutationTransform):
            position_of = position_of[transform.permutation]
        elif isinstance(transform, AffineCoupling):
            missed -= set(position_of[transform.mask == 0].tolist())
    if missed:
        layers = sum(isinstance(transform, AffineCoupling) for transform in transforms)
        raise ValueError(f"layers={layers} never transforms dimensions {sorted(missed)}: take more layers or another seed")
    if mean is not None or std is not None:
        transforms = [Standardise(torch.zeros(dim) if mean is None else mean, torch.ones(dim) if std is None else std), *transforms]
    return Flow(transforms, dim)


def _check_dim(dim: int) -> int:
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"dim must be an integer >= 1, not {dim!r}")
    return dim


def _check_layers(layers: int) -> int:
    if not isinstance(layers, int) or layers < 1:
        raise ValueError(f"layers must be an integer >= 1, not {layers!r}")
    return layers


# ---------------------------------------------------------------- saving


def save_flow(flow: Flow, path: Path, *, step: int = 0, seed: int | None = None, metrics: dict | None = None) -> None:
    """Writes the flow as one checkpoint that `load_flow` rebuilds; the file appears whole or not at all."""
    save_checkpoint(path, "flow", flow.config, flow.state_dict(), step=step, seed=seed, metrics=metrics)


def load_flow(path: Path, device: str | torch.device = "cpu", hint: str = "") -> Flow:
    """Rebuilds a flow that `save_flow` wrote.

    Raises:
        UserError: if the file is missing (`hint` then says what makes it), damaged or not a flow.
    """

    def build(checkpoint: dict) -> Flow:
        config = checkpoint["config"]
        flow = Flow([TRANSFORMS[name](**arguments) for name, arguments in config["transforms"]], config["dim"])
        dtypes = {value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()}
        return flow.to(*dtypes) if len(dtypes) == 1 else flow  # a flow in float64 comes back as one

    flow, _ = load_model(path, "flow", build, hint)
    return flow.to(device)


TRANSFORMS = {kind.__name__: kind for kind in (AffineCoupling, InvertibleLinear, PermutationTransform, Standardise)}
