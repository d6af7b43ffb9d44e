"""The Gaussian mixture of the benchmarks, against full covariance matrices."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from benchmarks.baselines import Mixture
from flowlib.rng import rng


@pytest.fixture
def mixture():
    """Three components on two of six dimensions."""
    noise = rng(0, "mixture")
    basis = torch.linalg.qr(torch.randn(6, 2, generator=noise, dtype=torch.float64)).Q
    mean = torch.randn(6, generator=noise).double()
    means = 2 * torch.randn(3, 2, generator=noise)
    factors = torch.randn(3, 2, 2, generator=noise, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.1 * torch.eye(2)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return Mixture(basis, mean, 0.09, weights.log(), means.double(), covariances)


def full(mixture: Mixture, seen: torch.Tensor) -> MixtureSameFamily:
    """The same distribution of the seen entries, with whole covariance matrices."""
    basis = mixture.basis[seen]
    covariances = basis @ mixture.covariances @ basis.T
    identity = torch.eye(len(basis), dtype=torch.float64)
    covariances = covariances + mixture.noise * identity
    means = mixture.means @ basis.T + mixture.mean[seen]
    parts = MultivariateNormal(means, covariances)
    return MixtureSameFamily(Categorical(logits=mixture.log_weights), parts)


def test_its_density_and_its_samples_are_those_of_the_full_covariances(mixture):
    everything = torch.ones(6, dtype=torch.bool)
    x, component = mixture.sample(20_000, rng(0, "sample"))
    exact = full(mixture, everything)
    torch.testing.assert_close(mixture.log_prob(x[:50]), exact.log_prob(x[:50]))

    four_errors = 4 * (exact.variance / len(x)).sqrt()
    assert ((x.mean(0) - exact.mean).abs() < four_errors).all()
    shares = torch.bincount(component, minlength=3) / len(x)
    assert (shares - mixture.log_weights.exp()).abs().max() < 0.015


def test_what_is_missing_is_drawn_from_the_conditional_distribution(mixture):
    hole = torch.tensor([True, False, True, False, False, True])
    (image,), _ = mixture.sample(1, rng(1, "sample"))
    exact = full(mixture, ~hole)
    given_component = exact.component_distribution.log_prob(image[~hole])
    joint = exact.mixture_distribution.logits + given_component
    weights, _, _ = mixture.given(image, hole)
    torch.testing.assert_close(weights, joint.softmax(0))

    drawn = mixture.draw(image, hole, 20_000, rng(2, "draw"))
    assert torch.equal(drawn[:, ~hole], image[~hole].expand(len(drawn), -1))

    # Their moments are those of p(missing, seen), by importance sampling.
    proposal = MultivariateNormal(drawn[:, hole].mean(0), 2 * drawn[:, hole].T.cov())
    torch.manual_seed(0)
    wild = proposal.sample((40_000,))
    filled = image.repeat(len(wild), 1)
    filled[:, hole] = wild
    ratio = (mixture.log_prob(filled) - proposal.log_prob(wild)).softmax(0)

    mean = ratio @ wild
    deviation = drawn[:, hole].std(0)
    assert ((mean - drawn[:, hole].mean(0)).abs() < 0.06 * deviation).all()
    second = ratio @ wild.square()
    assert ((second - drawn[:, hole].square().mean(0)).abs() < 0.1 * second).all()
