"""The models of moons_peers.py and moons_steps.py: our two flows and their peers."""

import warnings
from collections.abc import Callable
from functools import partial

import normflows as nf
import torch
from torch import Tensor, nn

from flows2d import MixtureBase, Standardize, StandardNormal, permutation_flow, realnvp
from train_moons import SIZES

# Sizes of most peers.
LAYERS = 12
HIDDEN = 64

# The linear layers' names: ours, normflows', nflows'.
LINEAR_LAYERS = ("InvertibleLinear", "LULinearPermute", "LULinear")

# A function from (mean, std) of the data to a model of it.
Builder = Callable[[Tensor, Tensor], nn.Module]


class Standardized(nn.Module):
    """A peer that models y = (x - mean) / std, as a density of x.

    log p(x) = log q(y) - Σ log std

    It has what a flows2d.Flow has: `log_prob`, `sample`, `base`, and `inverse` from
    latents to data. `inverse` as an argument is the peer's: z -> y and log|det dy/dz|.
    `learned_base` is the peer's base with modes, and `read_base` returns it as one of
    flows2d.py's. Without them it is N(0, I).
    """

    def __init__(
        self,
        peer: nn.Module,
        log_prob: Callable,
        inverse: Callable,
        mean,
        std,
        learned_base: nn.Module | None = None,
        read_base: Callable[[nn.Module], nn.Module] | None = None,
    ):
        super().__init__()
        self.peer = peer
        self.learned_base = learned_base or StandardNormal(2)
        self.read_base = read_base or (lambda base: base)
        self.peer_log_prob = log_prob
        self.peer_inverse = inverse
        self.standardize = Standardize(mean, std)

    def log_prob(self, x: Tensor) -> Tensor:
        y, log_det = self.standardize(x)
        return self.peer_log_prob(y) + log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = self.peer_inverse(z)
        x, log_std = self.standardize.inverse(y)
        return x, log_det + log_std

    @property
    def base(self) -> nn.Module:
        return self.read_base(self.learned_base)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.inverse(self.base.sample(n))[0]


def our_flow(
    architecture: Callable, layers: int, hidden: int, bins: int, modes: int = 1
) -> Builder:
    """One of flows2d.py's architectures."""
    widths = (hidden, hidden)
    build = partial(architecture, 2, layers, widths, modes=modes, bins=bins)
    return lambda mean, std: build(mean=mean, std=std)


def normflows_peer(
    layers: int, make_layer: Callable[[], list[nn.Module]], modes: int = 1
) -> Builder:
    """That many layers on N(0, I), or on normflows' own Gaussian mixture."""

    def build(mean: Tensor, std: Tensor) -> Standardized:
        base = nf.distributions.DiagGaussian(2, trainable=False)
        learned_base = read_base = None
        if modes > 1:
            # It starts where ours does.
            start = realnvp(2, layers=2, modes=modes).base.means.tolist()
            scale = [[1.0, 1.0]] * modes
            base = nf.distributions.GaussianMixture(modes, 2, loc=start, scale=scale)
            learned_base = base.float()  # it is made of numpy's float64
            read_base = read_normflows_mixture
        parts = [part for _ in range(layers) for part in make_layer()]
        flow = nf.NormalizingFlow(base, parts)
        to_data = flow.forward_and_log_det
        return Standardized(
            flow, flow.log_prob, to_data, mean, std, learned_base, read_base
        )

    return build


@torch.no_grad()
def read_normflows_mixture(base: nn.Module) -> MixtureBase:
    """The same mixture as one of flows2d.py."""
    variances = (2 * base.log_scale[0]).exp()
    weights = base.weight_scores[0].softmax(0)
    return MixtureBase(base.loc[0], variances.diag_embed(), weights)


def normflows_coupling() -> nn.Module:
    """An affine coupling as in normflows' examples: scales exp(s), unbounded."""
    net = nf.nets.MLP([1, HIDDEN, HIDDEN, 2], init_zeros=True)
    return nf.flows.AffineCouplingBlock(net)


def normflows_spline() -> nn.Module:
    """A rational-quadratic spline coupling with normflows' defaults."""
    return nf.flows.CoupledRationalQuadraticSpline(
        2, num_blocks=2, num_hidden_channels=HIDDEN
    )


def zuko_nsf(modes: int = 1) -> Builder:
    """zuko's neural spline flow with its defaults: autoregressive.

    It stands on N(0, I), or on zuko's own mixture of Gaussians, started where ours is.
    """

    def build(mean: Tensor, std: Tensor) -> Standardized:
        import zuko

        flow = zuko.flows.NSF(2, transforms=3, hidden_features=(HIDDEN, HIDDEN))
        learned_base = read_base = None
        if modes > 1:
            flow.base = learned_base = make_zuko_mixture(modes)
            read_base = read_zuko_mixture

        def to_data(z: Tensor) -> tuple[Tensor, Tensor]:
            return flow().transform.inv.call_and_ladj(z)

        def log_prob(y: Tensor) -> Tensor:
            return flow().log_prob(y)

        return Standardized(flow, log_prob, to_data, mean, std, learned_base, read_base)

    return build


@torch.no_grad()
def make_zuko_mixture(modes: int) -> nn.Module:
    """zuko's mixture of Gaussians with full covariances, started where ours is."""
    import zuko

    mixture = zuko.flows.GMM(2, components=modes)
    logits, means, log_scales, below = mixture.phi
    logits.zero_()
    means.copy_(realnvp(2, layers=2, modes=modes).base.means)
    log_scales.zero_()
    below.zero_()
    return mixture


@torch.no_grad()
def read_zuko_mixture(mixture: nn.Module) -> MixtureBase:
    """The same mixture as one of flows2d.py."""
    found = mixture()
    return MixtureBase(
        found.base.mean, found.base.covariance_matrix, found.logits.softmax(0)
    )


def nflows_affine(mean: Tensor, std: Tensor) -> Standardized:
    """nflows' affine couplings and linear layers.

    The linear layers start as the identity, so the masks alternate.
    """
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import AffineCouplingTransform, CompositeTransform, LULinear

    # nflows calls it, not we.
    warnings.filterwarnings("ignore", message="torch.triangular_solve is deprecated")

    def make_net(n: int, out: int) -> nn.Module:
        return ResidualNet(n, out, hidden_features=HIDDEN, num_blocks=2)

    transforms = []
    for i in range(LAYERS):
        mask = (torch.arange(2) + i) % 2
        transforms += [AffineCouplingTransform(mask, make_net), LULinear(2)]

    stack = CompositeTransform(transforms)
    flow = Flow(stack, StandardNormal([2]))
    return Standardized(flow, flow.log_prob, stack.inverse, mean, std)


def affine_and_linear() -> list[nn.Module]:
    """A layer of normflows: an affine coupling, then a linear map."""
    return [normflows_coupling(), nf.flows.LULinearPermute(2)]


def affine_and_swap() -> list[nn.Module]:
    """A layer of normflows: an affine coupling, then the coordinates trade places."""
    return [normflows_coupling(), nf.flows.Permute(2, mode="swap")]


def spline_and_linear() -> list[nn.Module]:
    """A layer of normflows: a spline coupling, then a linear map."""
    return [normflows_spline(), nf.flows.LULinearPermute(2)]


MODELS: dict[str, Builder] = {
    "realnvp (ours)": our_flow(realnvp, **SIZES),
    "permutation (ours)": our_flow(permutation_flow, **SIZES),
    "realnvp, 2 modes (ours)": our_flow(realnvp, **SIZES, modes=2),
    "permutation, 2 modes (ours)": our_flow(permutation_flow, **SIZES, modes=2),
    "permutation, affine (ours)": our_flow(permutation_flow, 20, 32, bins=0),
    "zuko NSF": zuko_nsf(),
    "zuko NSF, its 2 modes": zuko_nsf(modes=2),
    "normflows affine + LU": normflows_peer(LAYERS, affine_and_linear),
    "normflows, its 2 modes": normflows_peer(LAYERS, affine_and_linear, modes=2),
    "normflows coupling RQS": normflows_peer(8, spline_and_linear),
    "nflows affine + LU": nflows_affine,
}
# Ours and normflows' with the same widths and depth, for the cost of a training step.
STEP_TIME_PAIRS: dict[str, tuple[Builder, Builder]] = {
    "affine + linear": (
        our_flow(realnvp, LAYERS, HIDDEN, bins=0),
        normflows_peer(LAYERS, affine_and_linear),
    ),
    "affine + permutation": (
        our_flow(permutation_flow, LAYERS, HIDDEN, bins=0),
        normflows_peer(LAYERS, affine_and_swap),
    ),
}
