import math

import pytest
import torch

from flowlib.images.glow import ConvNet, Dequantiser, Glow, load_glow, precision_for, quantise, save_glow, spline


def small_glow(shape=(1, 8, 8), levels=17, seed=0) -> Glow:
    """A float64 Glow whose couplings do something, as after training."""
    torch.manual_seed(seed)
    glow = Glow(shape, levels, blocks=2, hidden=8, bins=4, dequantiser=4).double()
    glow.initialise(torch.randint(0, levels, (64, *shape)))
    for module in glow.modules():
        if isinstance(module, ConvNet):
            torch.nn.init.normal_(module.last.weight, 0, 0.2)
            torch.nn.init.normal_(module.last.bias, 0, 0.2)
    return glow


def test_log_det_is_that_of_the_jacobian_on_an_8x8_image():
    glow = small_glow()
    v = 0.05 + 0.9 * torch.rand(1, 1, 8, 8, dtype=torch.float64)

    def latents(flat):
        return torch.cat([z.flatten() for z in glow.encode(flat.reshape(1, 1, 8, 8))[0]])

    jacobian = torch.autograd.functional.jacobian(latents, v.flatten())
    assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(glow.encode(v)[1].item(), abs=1e-8)


def test_decode_undoes_encode():
    glow = small_glow()
    v = 0.05 + 0.9 * torch.rand(3, 1, 8, 8, dtype=torch.float64)
    latents, log_det = glow.encode(v)
    back, back_log_det = glow.decode(latents)
    assert [tuple(z.shape) for z in latents] == [(3, 8, 2, 2), (3, 2, 4, 4)]
    torch.testing.assert_close(back, v, rtol=0, atol=1e-10)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-8)


def test_log_prob_is_the_latents_log_prob_plus_log_det():
    glow = small_glow()
    v = 0.05 + 0.9 * torch.rand(3, 1, 8, 8, dtype=torch.float64)
    latents, log_det = glow.encode(v)
    expected = log_det + sum(base.log_prob(z) for base, z in zip(glow.flow.q0, latents))
    torch.testing.assert_close(glow.log_prob(v), expected)


def test_log_prob_is_differentiable_and_finite_up_to_the_edges():
    glow = small_glow().float()
    v = torch.rand(4, 1, 8, 8)
    v[0], v[1] = 0.0, 1.0
    v.requires_grad_()
    log_p = glow.log_prob(v)
    (gradient,) = torch.autograd.grad(log_p.sum(), v)
    assert log_p.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("levels", [17, 256])
def test_a_uniform_density_needs_exactly_log2_levels_bits(levels, monkeypatch):
    glow = Glow((1, 8, 8), levels, blocks=1, hidden=4, dequantiser=4)
    monkeypatch.setattr(glow, "log_prob", lambda v: torch.zeros(len(v)))
    uniform = torch.full((5,), 64 * math.log(levels))
    monkeypatch.setattr(glow.dequantiser, "forward", lambda images, noise: ((images + torch.rand(images.shape)) / levels, uniform))
    images = torch.randint(0, levels, (5, 1, 8, 8))
    for draws in (1, 3):
        torch.testing.assert_close(glow.bits_per_dim(images, draws), torch.full((5,), math.log2(levels)))


def test_an_untrained_dequantiser_is_the_closed_form_logit_normal():
    images = torch.randint(0, 256, (6, 1, 8, 8))
    v, log_q = Dequantiser(256, 4).double()(images, torch.randn(images.shape, dtype=torch.float64))
    u = 256 * v - images
    logit_normal = torch.distributions.TransformedDistribution(torch.distributions.Normal(0.0, 1.7), torch.distributions.SigmoidTransform())
    expected = (logit_normal.log_prob(u) + math.log(256)).flatten(1).sum(1)
    torch.testing.assert_close(log_q, expected, rtol=1e-6, atol=0)


def test_uniform_noise_fills_the_bins_evenly():
    images = torch.full((2000, 1, 4, 4), 3)
    v, log_q = Dequantiser(17, 0)(images, torch.randn(images.shape))
    torch.testing.assert_close(log_q, torch.full((2000,), 16 * math.log(17)))
    assert (17 * v - 3).mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert (17 * v - 3).var().item() == pytest.approx(1 / 12, abs=0.005)


def test_a_trained_dequantisers_log_q_is_the_change_of_variables():
    """One pixel: log q(v) = log N(ε) - log dv/dε, which autograd gives."""
    dequantiser = Dequantiser(17, 4).double()
    for parameter in dequantiser.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    noise = torch.randn(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    v, log_q = dequantiser(torch.full((1, 1, 1, 1), 5), noise)
    (slope,) = torch.autograd.grad(v.sum(), noise)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise) - slope.log()
    assert log_q.item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_probabilities_of_all_images_sum_to_less_than_one_and_approach_it_with_more_draws():
    """All 3² images of two pixels, under a density of v that integrates to one: the bound never promises too much probability."""

    class TwoPixels(Glow):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.shape, self.levels, self.pixels = (1, 2, 1), 3, 2
            self.dequantiser = Dequantiser(3, 4)
            self.flow = self.dequantiser.double()

        def log_prob(self, v):
            logit_normal = torch.distributions.TransformedDistribution(
                torch.distributions.Normal(-0.5, 0.8), torch.distributions.SigmoidTransform()
            )
            return logit_normal.log_prob(v).flatten(1).sum(1)

    glow = TwoPixels()
    torch.nn.init.normal_(glow.dequantiser.net.last.weight, 0, 0.2)
    images = torch.cartesian_prod(torch.arange(3), torch.arange(3)).reshape(9, 1, 2, 1).repeat_interleave(2000, 0)
    totals = []
    with torch.no_grad():
        for draws in (1, 4, 64):
            log_p = -glow.bits_per_dim(images, draws) * 2 * math.log(2)
            totals.append(log_p.reshape(9, 2000).mean(1).exp().sum().item())
    assert totals[0] < totals[1] < totals[2] < 1
    assert totals[2] > 0.97


# ---------------------------------------------------------------- couplings


def knots(shape=(5, 3), bins=6, scale=2.0):
    return scale * torch.randn(5, 2 * bins, *shape[1:]).double(), scale * torch.randn(5, bins - 1, *shape[1:]).double()


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
    torch.testing.assert_close(spline(x, 0 * sizes, 0 * slopes, bound=3.0)[0], x, rtol=0, atol=1e-9)


def test_bfloat16_stays_inside_the_networks():
    glow = small_glow().float()
    v = 0.05 + 0.9 * torch.rand(8, 1, 8, 8)
    exact = glow.log_prob(v)
    glow.set_precision(torch.bfloat16)
    rounded = glow.log_prob(v)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() / (64 * math.log(2)) < 0.02
    assert precision_for("fp32", torch.device("cpu")) == torch.float32


def test_every_parameter_gets_a_gradient():
    glow = small_glow()
    images = torch.randint(0, 17, (4, 1, 8, 8))
    glow(images, torch.randn(images.shape, dtype=torch.float64)).sum().backward()
    assert [name for name, parameter in glow.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantised_images_quantise_back_exactly(levels):
    glow = Glow((1, 8, 8), levels, blocks=1, hidden=4, dequantiser=4)
    glow.dequantiser.net.last.bias.data = torch.tensor([3.0, 1.5])  # noise that crowds at the bins' edges
    images = torch.randint(0, levels, (500, 1, 8, 8), dtype=torch.uint8)
    v = glow.dequantise(images)
    assert torch.equal(quantise(v, levels), images)
    assert ((v > 0) & (v < 1)).all()


def test_more_draws_tighten_the_bound():
    glow = small_glow()
    images = torch.randint(0, 17, (200, 1, 8, 8))
    with torch.no_grad():
        one, many = (glow.bits_per_dim(images, draws).mean().item() for draws in (1, 20))
    assert many < one


def test_initialise_whitens_the_training_images_and_a_sample_does_not():
    glow = Glow((1, 8, 8), 17, blocks=1, hidden=4, dequantiser=4)
    before = {name: value.clone() for name, value in glow.state_dict().items()}
    glow.sample(4)
    assert all(torch.equal(value, before[name]) for name, value in glow.state_dict().items())
    images = torch.randint(0, 17, (512, 1, 8, 8))
    glow.initialise(images)
    z = torch.cat([z.flatten(1) for z in glow.encode(glow.dequantise(images))[0]], dim=1)
    assert z.mean().item() == pytest.approx(0, abs=0.05)
    assert z.std().item() == pytest.approx(1, abs=0.1)


def test_a_saved_glow_loads_into_a_differently_seeded_one_with_the_same_results(tmp_path):
    glow = small_glow().float()
    save_glow(glow, tmp_path / "glow.pt", metrics={"test_bits_per_dim": 2.0})
    torch.manual_seed(99)
    loaded = load_glow(tmp_path / "glow.pt")
    v = 0.05 + 0.9 * torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.log_prob(v), glow.log_prob(v))
    assert loaded.metrics == {"test_bits_per_dim": 2.0}
    samples = []
    for model in (glow, loaded):
        torch.manual_seed(1)
        samples.append(model.sample(3))
    assert torch.equal(*samples)
    images = torch.randint(0, 17, (3, 1, 8, 8))
    bits = [model.bits_per_dim(images, generator=torch.Generator().manual_seed(1)) for model in (glow, loaded)]
    assert torch.equal(*bits)


def test_samples_are_images_and_colder_ones_vary_less():
    glow = small_glow()
    samples = glow.sample(50)
    assert samples.dtype == torch.uint8
    assert samples.shape == (50, 1, 8, 8)
    assert samples.max() <= 16
    cold = glow.sample(50, temperature=0.01)
    assert cold.float().var(0).mean() < samples.float().var(0).mean()
    assert all(base.temperature is None for base in glow.flow.q0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Glow((1, 7, 8)), "shape"),
        (lambda: Glow((3, 8, 8)), "shape"),
        (lambda: Glow((1, 8, 8), levels=1), "levels"),
        (lambda: Glow((1, 8, 8), blocks=0), "blocks"),
        (lambda: Glow((1, 8, 8), blocks=1, hidden=4).sample(0), "n must"),
        (lambda: Glow((1, 8, 8), blocks=1, hidden=4).sample(1, temperature=0), "temperature"),
        (lambda: Glow((1, 8, 8), blocks=1, hidden=4).log_prob(torch.rand(1, 1, 28, 28)), "v must be of shape"),
        (lambda: Glow((1, 8, 8), blocks=1, hidden=4).bits_per_dim(torch.zeros(1, 28, 28)), "images must be of shape"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()
