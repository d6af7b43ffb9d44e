import pytest
import torch
from sklearn.datasets import make_moons

from toy2d import TwoMoons, grid


@pytest.mark.parametrize(("noise", "entropy"), [(0.05, 0.2892), (0.08, 0.7754), (0.1, 1.0076)])
def test_density_integrates_to_one_and_has_the_known_entropy(noise, entropy):
    moons = TwoMoons(noise)
    points, area = grid(moons.bounds(6.5), noise / 3)
    assert (moons.log_prob(points).exp().sum() * area).item() == pytest.approx(1, abs=1e-8)
    assert moons.entropy() == pytest.approx(entropy, abs=1e-3)


def test_samples_follow_the_density():
    moons = TwoMoons(0.1)
    log_p = moons.log_prob(moons.sample(20_000, torch.Generator().manual_seed(0)))
    assert -log_p.mean().item() == pytest.approx(moons.entropy(), abs=4 * log_p.std().item() / 20_000**0.5)


def test_it_is_scikit_learns_two_moons():
    """make_moons' points are as likely as our own samples, up to its standard error."""
    moons = TwoMoons(0.1)
    points, _ = make_moons(20_000, noise=0.1, random_state=0)
    log_p = moons.log_prob(torch.from_numpy(points))
    assert -log_p.mean().item() == pytest.approx(moons.entropy(), abs=4 * log_p.std().item() / 20_000**0.5)


def test_log_prob_is_finite_far_away():
    assert TwoMoons(0.05).log_prob(torch.tensor([[1e3, -1e3]])).isfinite().all()


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_noise_is_named(noise):
    with pytest.raises(ValueError, match="noise"):
        TwoMoons(noise)
