import math

import pytest
import torch
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from flowlib.images.glow_layers import ActNorm, Block, Coupling, Dequantizer, SplitPrior

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
