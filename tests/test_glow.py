import math

import pytest
import torch
from torchvision.datasets import MNIST

import glow as glow_module
from common import UserError
from glow import Dequantiser, Glow, load_glow, load_images, quantise, save_glow


def small_glow(shape=(1, 8, 8), levels=17, seed=0) -> Glow:
    """A float64 Glow whose couplings do something, as after training."""
    torch.manual_seed(seed)
    glow = Glow(shape, levels, blocks=2, hidden=8, dequantiser=4).double()
    glow.initialise(torch.randint(0, levels, (64, *shape)))
    for name, parameter in glow.named_parameters():
        if "param_map" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
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
    monkeypatch.setattr(glow.dequantiser, "forward", lambda images, generator: ((images + torch.rand(images.shape)) / levels, uniform))
    images = torch.randint(0, levels, (5, 1, 8, 8))
    for draws in (1, 3):
        torch.testing.assert_close(glow.bits_per_dim(images, draws), torch.full((5,), math.log2(levels)))


def test_an_untrained_dequantiser_is_the_closed_form_logit_normal():
    images = torch.randint(0, 256, (6, 1, 8, 8))
    v, log_q = Dequantiser(256, 4).double()(images)
    u = 256 * v - images
    logit_normal = torch.distributions.TransformedDistribution(torch.distributions.Normal(0.0, 1.7), torch.distributions.SigmoidTransform())
    expected = (logit_normal.log_prob(u) + math.log(256)).flatten(1).sum(1)
    torch.testing.assert_close(log_q, expected, rtol=1e-6, atol=0)


def test_a_trained_dequantisers_log_q_is_the_change_of_variables():
    """One pixel: log q(v) = log N(ε) - log dv/dε, and dv/dε = σ dv/dμ, which autograd gives through the last bias."""
    dequantiser = Dequantiser(17, 4).double()
    for parameter in dequantiser.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    image = torch.full((1, 1, 1, 1), 5)
    v, log_q = dequantiser(image, torch.Generator().manual_seed(3))
    noise = torch.randn(1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (slope,) = torch.autograd.grad(v.sum(), dequantiser.net[-1].bias)
    log_std = dequantiser.net(2 * image.double() / 16 - 1)[0, 1, 0, 0]
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise) - log_std - slope[0].log()
    assert log_q.item() == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantised_images_quantise_back_exactly(levels):
    glow = Glow((1, 8, 8), levels, blocks=1, hidden=4, dequantiser=4)
    glow.dequantiser.net[-1].bias.data = torch.tensor([3.0, 1.5])  # noise that crowds at the bins' edges
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
        (lambda: load_images("cifar"), "dataset"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_the_digits_are_split_without_overlap(digits):
    assert digits.shape == (1, 8, 8)
    assert [len(part) for part in (digits.train, digits.held_out, digits.test)] == [1257, 180, 360]
    assert digits.train.max() == digits.levels - 1


def test_mnist_holds_out_the_last_training_images(mnist):
    assert mnist.shape == (1, 28, 28)
    assert mnist.levels == 256
    assert [len(part) for part in (mnist.train, mnist.held_out, mnist.test)] == [55_000, 5_000, 10_000]


def test_an_unreachable_download_falls_back_or_fails_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    with pytest.raises(UserError, match="--data-dir says where it lies"):
        load_images("mnist", tmp_path)
    assert load_images("auto", tmp_path).name == "digits"
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "using scikit-learn" in line] == printed[-1:]
    assert glow_module.socket.getdefaulttimeout() is None
