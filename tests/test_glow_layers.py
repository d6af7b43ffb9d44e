import math

import pytest
import torch
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from flowlib.images.glow_layers import (
    ActNorm,
    Block,
    Coupling,
    Dequantizer,
    SplitPrior,
    spline,
)

# ---------------------------------------------------------------- splines


def knots(shape=(5, 3), bins=6, scale=2.0):
    sizes = scale * torch.randn(5, 2 * bins, *shape[1:]).double()
    return sizes, scale * torch.randn(5, bins - 1, *shape[1:]).double()


def test_the_splines_log_slope_is_autograds():
    x = (2 * torch.randn(5, 3, dtype=torch.float64)).requires_grad_()
    y, log_slope = spline(x, *knots(), bound=3.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (x.abs() > 3).any()
    assert (x.abs() < 3).any()
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-10)


def test_the_splines_inverse_undoes_it():
    x, sizes_and_slopes = 2 * torch.randn(5, 3, dtype=torch.float64), knots()
    y, log_slope = spline(x, *sizes_and_slopes, bound=3.0)
    back, back_log_slope = spline(y, *sizes_and_slopes, bound=3.0, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(back_log_slope, -log_slope, rtol=0, atol=1e-7)


def test_a_spline_is_continuous_increasing_and_the_identity_outside_and_for_zeros():
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64).expand(5, -1)
    sizes, slopes = (value[..., :1].expand(-1, -1, 4001) for value in knots())
    y, _ = spline(x, sizes, slopes, bound=3.0)
    assert (y.diff() > 0).all()
    assert torch.equal(y[x.abs() >= 3], x[x.abs() >= 3])
    assert (y - x).abs()[:, 499:502].max() < 0.2  # nothing jumps at the border
    identity, _ = spline(x, 0 * sizes, 0 * slopes, bound=3.0)
    torch.testing.assert_close(identity, x, rtol=0, atol=1e-9)


# ---------------------------------------------------------------- layers


def busy(layer):
    """The layer in float64, with parameters that do something."""
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return layer.double()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Coupling(4, 8, 1, 4),
        lambda: Block(4, 8, 1, 4),
        lambda: SplitPrior(4, 8, 1),
    ],
    ids=["coupling", "block", "split prior"],
)
def test_a_layers_log_det_is_that_of_its_jacobian_and_its_forward_undoes_it(make):
    layer, x = busy(make()), torch.randn(1, 4, 2, 2, dtype=torch.float64)

    def latents(flat):
        z, _ = layer.inverse(flat.reshape(1, 4, 2, 2))
        return torch.cat(
            [part.flatten() for part in (z if isinstance(z, list) else [z])]
        )

    z, log_det = layer.inverse(x)
    jacobian = torch.autograd.functional.jacobian(latents, x.flatten())
    assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(
        log_det.item(), abs=1e-9
    )
    back, back_log_det = layer(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-8)


def test_actnorm_takes_its_statistics_from_data_only_while_it_initializes():
    layer, x = ActNorm((3, 1, 1)), 5 + 2 * torch.randn(64, 3, 4, 4)
    layer(x)
    assert torch.equal(layer.inverse(x)[0], x)
    layer.initializing = True
    z, log_det = layer.inverse(x)
    layer.initializing = False
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-5)
    assert log_det.item() == pytest.approx(
        -16 * x.std((0, 2, 3)).log().sum().item(), rel=1e-5
    )
    assert torch.equal(layer.inverse(x)[0], z)


# ---------------------------------------------------------------- dequantizer


@pytest.mark.parametrize("channels", [4, 8])
def test_a_blocks_convolution_starts_as_a_permutation_that_renews_half_of_the_kept(
    channels,
):
    orders, kept = set(), channels // 2
    for _ in range(40):
        convolution = Block(channels, 8, 1, 4).flows[1]
        x = torch.randn(2, channels, 3, 3)
        y, log_det = convolution.inverse(x)
        # (channels, channels)
        equal = (y[:, :, None] == x[:, None]).all(-1).all(-1).all(0)
        assert (equal.sum(0) == 1).all()
        assert (equal.sum(1) == 1).all()
        assert equal[:kept, :kept].sum() <= kept / 2
        assert log_det == 0
        orders.add(tuple(equal.int().argmax(1).tolist()))
    assert len(orders) > 5


def test_an_untrained_dequantizer_is_the_closed_form_logit_normal():
    images = torch.randint(0, 256, (6, 1, 8, 8))
    noise = torch.randn(images.shape, dtype=torch.float64)
    v, log_q = Dequantizer(256, 4).double()(images, noise)
    logit_normal = TransformedDistribution(Normal(0.0, 1.7), SigmoidTransform())
    expected = (
        (logit_normal.log_prob(256 * v - images) + math.log(256)).flatten(1).sum(1)
    )
    torch.testing.assert_close(log_q, expected, rtol=1e-6, atol=0)


def test_a_trained_dequantizers_log_q_is_the_change_of_variables():
    """One pixel: log q(v) = log N(ε) - log dv/dε, which autograd gives."""
    dequantizer = Dequantizer(17, 4).double()
    for parameter in dequantizer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    noise = torch.randn(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    v, log_q = dequantizer(torch.full((1, 1, 1, 1), 5), noise)
    (slope,) = torch.autograd.grad(v.sum(), noise)
    expected = Normal(0.0, 1.0).log_prob(noise) - slope.log()
    assert log_q.item() == pytest.approx(expected.item(), abs=1e-10)
