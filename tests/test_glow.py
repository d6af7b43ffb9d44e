import functools
import math

import pytest
import torch
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from flowlib.files import SHIPPED, UserError, save_model
from flowlib.images.glow import Glow, choose_glow, load_glow, precision_for
from flowlib.images.glow_layers import ConvNet, Dequantizer
from flowlib.rng import rng


def small_glow(shape=(1, 8, 8), levels=17, seed=0) -> Glow:
    """A float64 Glow whose couplings and bases do something, as after training."""
    torch.manual_seed(seed)
    glow = Glow(shape, levels, blocks=2, hidden=8, bins=4, dequantizer=4).double()
    glow.initialize(torch.randint(0, levels, (64, *shape)))
    for module in glow.modules():
        if isinstance(module, ConvNet):
            torch.nn.init.normal_(module.last.weight, 0, 0.2)
            torch.nn.init.normal_(module.last.bias, 0, 0.2)
    for base in glow.flow.q0:
        torch.nn.init.normal_(base.loc, 0, 0.2)
        torch.nn.init.normal_(base.log_scale, 0, 0.2)
    return glow


# ---------------------------------------------------------------- densities


def test_log_det_is_that_of_the_jacobian_on_an_8x8_image():
    glow = small_glow()
    v = 0.05 + 0.9 * torch.rand(1, 1, 8, 8, dtype=torch.float64)

    def latents(flat):
        return torch.cat(
            [z.flatten() for z in glow.encode(flat.reshape(1, 1, 8, 8))[0]]
        )

    jacobian = torch.autograd.functional.jacobian(latents, v.flatten())
    log_det = torch.linalg.slogdet(jacobian).logabsdet.item()
    assert log_det == pytest.approx(glow.encode(v)[1].item(), abs=1e-8)


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
    expected = log_det
    for base, z in zip(glow.flow.q0, latents):
        normal = Normal(base.loc, base.log_scale.exp())
        expected = expected + normal.log_prob(z).flatten(1).sum(1)
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


def test_every_parameter_gets_a_gradient():
    glow = small_glow()
    images = torch.randint(0, 17, (4, 1, 8, 8))
    glow(images, torch.randn(images.shape, dtype=torch.float64)).sum().backward()
    parameters = glow.named_parameters()
    assert [
        name for name, value in parameters if value.grad is None or not value.grad.any()
    ] == []


def test_bfloat16_stays_inside_the_networks():
    glow = small_glow().float()
    v = 0.05 + 0.9 * torch.rand(8, 1, 8, 8)
    exact = glow.log_prob(v)
    glow.set_precision(torch.bfloat16)
    rounded = glow.log_prob(v)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() / (64 * math.log(2)) < 0.02
    assert precision_for("fp32", torch.device("cpu")) == torch.float32


# ---------------------------------------------------------------- bits per dimension


@pytest.mark.parametrize("levels", [17, 256])
def test_a_uniform_density_needs_exactly_log2_levels_bits(levels, monkeypatch):
    glow = Glow((1, 8, 8), levels, blocks=1, hidden=4, dequantizer=4)

    def uniform(images, noise):
        log_q = torch.full((5,), 64 * math.log(levels))
        return (images + torch.rand(images.shape)) / levels, log_q

    monkeypatch.setattr(glow, "log_prob", lambda v: torch.zeros(len(v)))
    monkeypatch.setattr(glow.dequantizer, "forward", uniform)
    images = torch.randint(0, levels, (5, 1, 8, 8))
    for draws in (1, 3):
        bits = glow.bits_per_dim(images, draws)
        torch.testing.assert_close(bits, torch.full((5,), math.log2(levels)))


def test_the_probabilities_of_all_images_sum_to_nearly_one_with_many_draws():
    """All 3² images of two pixels, under a density of v that integrates to one.

    The bound never promises too much probability.
    """

    class TwoPixels(Glow):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.shape, self.levels = (1, 2, 1), 3
            self.dequantizer = Dequantizer(3, 4).double()

        def log_prob(self, v):
            logit_normal = TransformedDistribution(
                Normal(-0.5, 0.8), SigmoidTransform()
            )
            return logit_normal.log_prob(v).flatten(1).sum(1)

    glow = TwoPixels()
    torch.nn.init.normal_(glow.dequantizer.net.last.weight, 0, 0.2)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    images = pairs.reshape(9, 1, 2, 1).repeat_interleave(2000, 0)
    totals = []
    with torch.no_grad():
        for draws in (1, 4, 64):
            log_p = -glow.bits_per_dim(images, draws) * 2 * math.log(2)
            totals.append(log_p.reshape(9, 2000).mean(1).exp().sum().item())
    assert totals[0] < totals[1] < totals[2] < 1
    assert totals[2] > 0.97


def test_more_draws_tighten_the_bound():
    glow = small_glow()
    images = torch.randint(0, 17, (200, 1, 8, 8))
    with torch.no_grad():
        one, many = (
            glow.bits_per_dim(images, draws).mean().item() for draws in (1, 20)
        )
    assert many < one


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantized_images_quantize_back_exactly(levels):
    glow = Glow((1, 8, 8), levels, blocks=1, hidden=4, dequantizer=4)
    crowded = torch.tensor([3.0, 1.5])  # noise that crowds at the bins' edges
    glow.dequantizer.net.last.bias.data = crowded
    images = torch.randint(0, levels, (500, 1, 8, 8), dtype=torch.uint8)
    v = glow.dequantize(images)
    assert torch.equal(glow.quantize(v), images)
    assert ((v > 0) & (v < 1)).all()


def test_initialize_whitens_the_training_images_and_a_sample_does_not():
    glow = Glow((1, 8, 8), 17, blocks=1, hidden=4, dequantizer=4)
    before = {name: value.clone() for name, value in glow.state_dict().items()}
    glow.sample(4)
    assert all(
        torch.equal(value, before[name]) for name, value in glow.state_dict().items()
    )
    images = torch.randint(0, 17, (512, 1, 8, 8))
    glow.initialize(images)
    z = torch.cat(
        [z.flatten(1) for z in glow.encode(glow.dequantize(images))[0]], dim=1
    )
    assert z.mean().item() == pytest.approx(0, abs=0.05)
    assert z.std().item() == pytest.approx(1, abs=0.1)


def test_compiled_couplings_have_the_same_density_and_gradient(monkeypatch):
    # This backend traces the couplings as the default one does, without its C++ or GPU
    # code.
    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend="aot_eager")
    )
    glow, v = small_glow(), torch.rand(4, 1, 8, 8, dtype=torch.float64).requires_grad_()
    found = []
    for _ in range(2):
        log_p = glow.log_prob(v)
        found.append([log_p.detach(), *torch.autograd.grad(log_p.sum(), v)])
        glow.compile_couplings()
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- samples


def test_samples_come_from_the_learned_base_distributions():
    """Their latents, standardized by the bases' means and scales, are normal."""
    glow = small_glow()
    with torch.no_grad():
        for base, loc, scale in zip(glow.flow.q0, (0.7, -0.5), (0.5, 0.8)):
            base.loc += loc
            base.log_scale += math.log(scale)
    latents, _ = glow.encode(glow.sample(600, rng(0, "test")))
    for base, z in zip(glow.flow.q0, latents):
        noise = (z - base.loc) / base.log_scale.exp()
        # 600 draws: a mean's standard error is 0.041, a standard deviation's 0.029
        torch.testing.assert_close(noise.mean(0), 0 * base.loc[0], rtol=0, atol=0.2)
        torch.testing.assert_close(noise.std(0), 1 + 0 * base.loc[0], rtol=0, atol=0.15)


def test_samples_have_the_mean_log_prob_that_their_entropy_implies():
    """E[log p(v)] = -entropy of the bases + E[log |det d z / d v|], over samples v."""
    glow = small_glow()
    with torch.no_grad():
        for base in glow.flow.q0:
            base.log_scale -= (
                2  # narrow, so that no sample is clamped at the edges of (0, 1)
            )
        v = glow.sample(500, rng(0, "test"))
        assert 1e-6 < v.min() < v.max() < 1 - 1e-6
        log_det = glow.encode(v)[1]
        bases = [Normal(base.loc, base.log_scale.exp()) for base in glow.flow.q0]
        expected = log_det - sum(base.entropy().sum() for base in bases)
        difference = (glow.log_prob(v) - expected).mean().item()
    # log p of 64 normal numbers varies by sqrt(64 / 2)
    assert difference == pytest.approx(0, abs=4 * math.sqrt(32 / 500))


def test_samples_are_reproducible_inside_the_unit_interval_and_vary_less_when_cold():
    glow = small_glow()
    samples = glow.sample(300, rng(0, "test"))
    assert samples.shape == (300, 1, 8, 8)
    assert samples.min() >= 1e-6
    assert samples.max() <= 1 - 1e-6
    assert torch.equal(samples, glow.sample(300, rng(0, "test")))
    assert torch.equal(samples[:250], glow.sample(250, rng(0, "test")))
    assert not torch.equal(samples, glow.sample(300, rng(1, "test")))
    images = glow.quantize(samples)
    assert images.dtype == torch.uint8
    assert images.max() <= 16
    cold = glow.sample(300, rng(0, "test"), temperature=0.01)
    assert cold.var(0).mean() < samples.var(0).mean()


# ---------------------------------------------------------------- checkpoints


def test_a_saved_glow_loads_into_a_differently_seeded_one_with_the_same_results(
    tmp_path,
):
    glow = small_glow().float()
    save_model(glow, tmp_path / "glow.pt", metrics={"test_bits_per_dim": 2.0})
    torch.manual_seed(99)
    loaded = load_glow(tmp_path / "glow.pt")
    v = 0.05 + 0.9 * torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.log_prob(v), glow.log_prob(v))
    assert loaded.metrics == {"test_bits_per_dim": 2.0}
    assert torch.equal(*(model.sample(3, rng(1, "test")) for model in (glow, loaded)))
    images = torch.randint(0, 17, (3, 1, 8, 8))
    assert torch.equal(
        *(m.bits_per_dim(images, generator=rng(1, "x")) for m in (glow, loaded))
    )


def test_a_script_says_which_glow_it_takes_and_refuses_one_of_other_data(
    tmp_path, digits, capsys
):
    cpu, path = torch.device("cpu"), tmp_path / "glow.pt"
    metrics = {"test_bits_per_dim": 2.25, "data": "digits"}
    save_model(small_glow(), path, metrics=metrics)  # as before there were fingerprints
    assert choose_glow(path, "digits", cpu, digits).levels == 17
    assert capsys.readouterr().out == f"{path}, 2.250 bits/dim\n"
    choose_glow(None, "digits", cpu, digits)
    assert "glow_digits.pt, " in capsys.readouterr().out

    for made_from, says in (
        ({"name": "mnist"}, "made from other data .name mnist, now digits.: --dataset"),
        ({"files": ["a.png"], "pixels": "0"}, "files of one's own, now digits"),
        ({}, "does not say which data it was made from"),
    ):
        save_model(small_glow(), path, made_from=made_from)
        with pytest.raises(UserError, match=says):
            choose_glow(path, "digits", cpu, digits)
    choose_glow(
        path, "digits", cpu
    )  # where no data are used there is nothing to compare


@pytest.mark.parametrize(("dataset", "pixels"), [("mnist", 784), ("digits", 64)])
def test_the_shipped_weights_load_and_know_their_metrics(dataset, pixels):
    glow = load_glow(SHIPPED / f"glow_{dataset}.pt")
    assert math.prod(glow.shape) == pixels
    assert glow.metrics["data"] == dataset
    assert glow.metrics["parameters"] == sum(
        parameter.numel() for parameter in glow.parameters()
    )


def tiny(**options) -> Glow:
    return Glow((1, 8, 8), blocks=1, hidden=4, **options)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Glow((1, 7, 8)), "shape"),
        (lambda: Glow((3, 8, 8)), "shape"),
        (lambda: tiny(levels=1), "levels"),
        (lambda: Glow((1, 8, 8), blocks=0), "blocks"),
        (lambda: tiny().sample(0), "n must"),
        (lambda: tiny().sample(1, temperature=0), "temperature"),
        (lambda: tiny().log_prob(torch.rand(1, 1, 28, 28)), "v must be of shape"),
        (
            lambda: tiny().bits_per_dim(torch.zeros(1, 28, 28)),
            "images must be of shape",
        ),
        (
            lambda: tiny().bits_per_dim(torch.full((1, 1, 8, 8), 9 / 255)),
            "integer grey levels 0",
        ),
        (
            lambda: tiny().dequantize(torch.full((1, 1, 8, 8), -1)),
            "integer grey levels 0 ... 255",
        ),
        (
            lambda: tiny(levels=17).dequantize(torch.full((1, 1, 8, 8), 17)),
            "levels 0 ... 16 are",
        ),
        (
            lambda: tiny().bits_per_dim(torch.full((1, 1, 8, 8), float("nan"))),
            "integer grey",
        ),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()
