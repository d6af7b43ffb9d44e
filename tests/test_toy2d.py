import math

import pytest
import torch
from sklearn.datasets import make_moons

from flowlib.grids import grid
from flowlib.toy2d import SHAPES, Checkerboard, TwoMoons


@pytest.mark.parametrize(
    ("noise", "entropy"), [(0.05, 0.2892), (0.08, 0.7754), (0.1, 1.0076)]
)
def test_the_moons_entropy_is_the_known_one(noise, entropy):
    assert TwoMoons(noise).entropy() == pytest.approx(entropy, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_density_integrates_to_one(shape):
    truth = shape(0.1)
    points, area = grid(truth.bounds(6.5), truth.noise / 3)
    # the board's edges cut through cells
    tolerance = 0.05 if shape is Checkerboard else 1e-8
    assert (truth.log_prob(points).exp().sum() * area).item() == pytest.approx(
        1, abs=tolerance
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_samples_follow_the_density(shape):
    """-log p averages to the entropy over samples; a square's share is its integral."""
    truth = shape(0.1)
    samples = truth.sample(20_000, torch.Generator().manual_seed(0))
    log_p = truth.log_prob(samples)
    assert -log_p.mean().item() == pytest.approx(
        truth.entropy(), abs=4 * log_p.std().item() / 20_000**0.5 + 1e-9
    )
    points, area = grid((0.0, 0.5, -0.5, 0.0), 0.005)
    expected = (truth.log_prob(points).exp().sum() * area).item()
    inside = (
        (
            (samples[:, 0] >= 0)
            & (samples[:, 0] < 0.5)
            & (samples[:, 1] >= -0.5)
            & (samples[:, 1] < 0)
        )
        .float()
        .mean()
        .item()
    )
    assert inside == pytest.approx(expected, abs=4 * math.sqrt(expected / 20_000))


def test_the_moons_are_scikit_learns():
    """make_moons' points are as likely as our own samples, up to the standard error."""
    moons = TwoMoons(0.1)
    points, _ = make_moons(20_000, noise=0.1, random_state=0)
    log_p = moons.log_prob(torch.from_numpy(points))
    assert -log_p.mean().item() == pytest.approx(
        moons.entropy(), abs=4 * log_p.std().item() / 20_000**0.5
    )


def test_log_prob_is_finite_far_away():
    assert TwoMoons(0.05).log_prob(torch.tensor([[1e3, -1e3]])).isfinite().all()


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_noise_is_named(noise):
    with pytest.raises(ValueError, match="noise"):
        TwoMoons(noise)


@pytest.mark.parametrize("shape", SHAPES)
def test_points_of_uniform_numbers_have_the_same_distribution(shape):
    truth = SHAPES[shape](0.1)
    x = truth.from_uniform(torch.rand(40_000, 3, dtype=torch.float64))
    y = truth.sample(40_000)
    error = y.std(0) / math.sqrt(len(y))
    assert ((x.mean(0) - y.mean(0)).abs() < 6 * error).all()
    assert ((x.T.cov() - y.T.cov()).abs() < 0.03).all()
    spread = truth.log_prob(y).std().item()
    gap = truth.log_prob(x).mean().item() + truth.entropy()
    assert abs(gap) <= 5 * spread / math.sqrt(len(y))


def test_the_curves_joint_density_says_which_curve_a_point_is_of():
    truth = SHAPES["moons"](0.05)
    t = torch.linspace(0, 1, 50)
    for i, curve in enumerate(truth.curves):
        joint = truth.log_joint(curve(t))
        torch.testing.assert_close(joint.logsumexp(1), truth.log_prob(curve(t)))
        assert (joint.argmax(1) == i).all()
