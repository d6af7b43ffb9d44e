"""The models of moons_peers.py and moons_steps.py: our two flows and their peers."""

import warnings
from collections.abc import Callable

import normflows as nf
import torch
from torch import Tensor, nn

from flows2d import Standardize, permutation_flow, realnvp

# Sizes of most peers; our flows have those of train_moons.py.
LAYERS = 12
HIDDEN = 64

# The linear layers' names: ours, normflows', nflows'.
LINEAR_LAYERS = ("InvertibleLinear", "LULinearPermute", "LULinear")

# A function from (mean, std) of the data to a model of it.
Builder = Callable[[Tensor, Tensor], nn.Module]


class Standardized(nn.Module):
    """A peer that models y = (x - mean) / std, as a density of x.

    log p(x) = log q(y) - Σ log std

    It has what a flows2d.Flow has: `log_prob`, `sample`, and `inverse` from noise to
    data. `inverse` as an argument is the peer's: z -> y and log|det dy/dz|.
    """

    def __init__(
        self, peer: nn.Module, log_prob: Callable, inverse: Callable, mean, std
    ):
        super().__init__()
        self.peer = peer
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

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.inverse(torch.randn(n, 2))[0]


def our_flow(architecture: Callable, layers: int, hidden: int) -> Builder:
    """One of flows2d.py's architectures."""
    return lambda mean, std: architecture(2, layers, (hidden, hidden), mean, std)


def normflows_peer(layers: int, make_layer: Callable[[], list[nn.Module]]) -> Builder:
    """That many layers on a standard normal that is fixed, as in every model here."""

    def build(mean: Tensor, std: Tensor) -> Standardized:
        base = nf.distributions.DiagGaussian(2, trainable=False)
        parts = [part for _ in range(layers) for part in make_layer()]
        flow = nf.NormalizingFlow(base, parts)
        return Standardized(flow, flow.log_prob, flow.forward_and_log_det, mean, std)

    return build


def normflows_coupling() -> nn.Module:
    """An affine coupling as in normflows' examples: scales exp(s), unbounded."""
    net = nf.nets.MLP([1, HIDDEN, HIDDEN, 2], init_zeros=True)
    return nf.flows.AffineCouplingBlock(net)


def normflows_spline() -> nn.Module:
    """A rational-quadratic spline coupling with normflows' defaults."""
    return nf.flows.CoupledRationalQuadraticSpline(
        2, num_blocks=2, num_hidden_channels=HIDDEN
    )


def zuko_nsf(mean: Tensor, std: Tensor) -> Standardized:
    """zuko's neural spline flow with its defaults: autoregressive."""
    import zuko

    flow = zuko.flows.NSF(2, transforms=3, hidden_features=(HIDDEN, HIDDEN))

    def inverse(z: Tensor) -> tuple[Tensor, Tensor]:
        return flow().transform.inv.call_and_ladj(z)

    return Standardized(flow, lambda y: flow().log_prob(y), inverse, mean, std)


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
    "realnvp (ours)": our_flow(realnvp, 28, 32),  # the sizes of train_moons.py
    "permutation (ours)": our_flow(permutation_flow, 28, 32),
    "zuko NSF": zuko_nsf,
    "normflows affine + LU": normflows_peer(LAYERS, affine_and_linear),
    "normflows coupling RQS": normflows_peer(8, spline_and_linear),
    "nflows affine + LU": nflows_affine,
}
# Ours and normflows' with the same widths and depth, for the cost of a training step.
STEP_TIME_PAIRS: dict[str, tuple[Builder, Builder]] = {
    "affine + linear": (
        our_flow(realnvp, LAYERS, HIDDEN),
        normflows_peer(LAYERS, affine_and_linear),
    ),
    "affine + permutation": (
        our_flow(permutation_flow, LAYERS, HIDDEN),
        normflows_peer(LAYERS, affine_and_swap),
    ),
}
