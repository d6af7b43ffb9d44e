import math

import pytest
import torch

from flowlib.inpainting.hmc import next_temperature, posterior_inpaint, split_r_hat
from flowlib.inpainting.masks import noise_masks
from flows2d import realnvp

OPTIONS = dict(runs=4, particles=8, leapfrog=4, conditional_ess=0.9, settle=10, keep=10)


def gaussian(dim=4):
    factor = torch.randn(dim, dim, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(
        torch.randn(dim, dtype=torch.float64), factor @ factor.T + 0.5 * torch.eye(dim, dtype=torch.float64)
    )


def bumps(v):
    """A log-density on (0, 1), coupled between the pixels."""
    flat = v.flatten(1)
    return -((flat - 0.3) ** 2).sum(1) * 20 - 5 * (flat.mean(1) - 0.3) ** 2


def test_on_a_gaussian_mean_covariance_and_evidence_are_the_closed_form_ones():
    density = gaussian()
    x, missing = torch.randn(4, dtype=torch.float64), torch.tensor([True, False, True, False])
    known, covariance = ~missing, density.covariance_matrix
    gain = covariance[missing][:, known] @ torch.linalg.inv(covariance[known][:, known])
    mean = density.loc[missing] + gain @ (x[known] - density.loc[known])
    spread = covariance[missing][:, missing] - gain @ covariance[known][:, missing]
    marginal = torch.distributions.MultivariateNormal(density.loc[known], covariance[known][:, known])
    guesses, width = torch.randn(5, 1, 4, dtype=torch.float64), 0.5 + torch.rand(5, 1, 4, dtype=torch.float64)
    options = dict(runs=8, particles=250, leapfrog=6, settle=10, keep=10, width=width, unit_interval=False)
    found = posterior_inpaint(density.log_prob, x[None], missing[None], guesses, **options)
    samples = found.samples[:, 0, missing]
    deviation = spread.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < 0.06 * deviation).all()  # some 1,000 effective samples: two standard errors
    torch.testing.assert_close(samples.T.cov() / deviation[:, None] / deviation, spread / deviation[:, None] / deviation, rtol=0, atol=0.12)
    assert found.log_evidence.item() == pytest.approx(marginal.log_prob(x[known]).item(), abs=0.06)
    torch.testing.assert_close(found.log_prob[:, 0], density.log_prob(found.samples[:, 0]))
    assert found.r_hat.item() < 1.05


def test_on_a_flow_the_samples_have_the_conditional_distribution_by_quadrature():
    flow = realnvp(2, layers=4, hidden=(16,)).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, 0, 0.4)
    grid = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    x = torch.tensor([[0.3, math.nan]], dtype=torch.float64)
    points = torch.stack([torch.full_like(grid, 0.3), grid], 1)
    density = flow.log_prob(points).detach().exp()
    total = torch.trapezoid(density, grid)
    cdf = torch.cumulative_trapezoid(density, grid) / total
    guesses = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None, None].expand(9, 1, 2)
    found = posterior_inpaint(
        flow.log_prob, x, torch.tensor([[False, True]]), guesses, runs=8, particles=100, leapfrog=6, settle=10, keep=10, unit_interval=False
    )
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):  # some 800 effective samples: four standard errors
        quantile = grid[1:][(cdf < q).sum()]
        assert (found.samples[:, 0, 1] <= quantile).double().mean().item() == pytest.approx(q, abs=4 * math.sqrt(q * (1 - q) / 800))
    assert found.log_evidence.item() == pytest.approx(total.log().item(), abs=0.15)


def test_known_entries_stay_and_what_lies_under_the_hole_changes_nothing():
    x, mask, guesses = torch.rand(3, 1, 4, 4), noise_masks(3, 4, 4, 0.5), torch.rand(6, 3, 1, 4, 4)
    expected = posterior_inpaint(bumps, x, mask, guesses, **OPTIONS)
    assert torch.equal(expected.samples[:, ~mask], x[~mask].expand(len(expected.samples), -1))
    assert ((expected.samples > 0) & (expected.samples < 1)).all()
    assert expected.samples.shape == (320, 3, 1, 4, 4)
    for under in (0.0, 0.9, math.nan):
        found = posterior_inpaint(bumps, torch.where(mask, under, x), mask, torch.where(mask, guesses, under), **OPTIONS)
        for a, b in zip(found, expected):
            assert torch.equal(a, b)


def test_a_batch_equals_its_examples_one_by_one():
    x, mask = torch.rand(3, 1, 4, 4, dtype=torch.float64), noise_masks(3, 4, 4, 0.5)
    guesses, seeds = torch.rand(6, 3, 1, 4, 4, dtype=torch.float64), [5, 3, 8]
    together = posterior_inpaint(bumps, x, mask, guesses, seeds=seeds, **OPTIONS)
    for i in range(3):
        part = slice(i, i + 1)
        alone = posterior_inpaint(bumps, x[part], mask[part], guesses[:, part], seeds=seeds[part], **OPTIONS)
        torch.testing.assert_close(alone.samples[:, 0], together.samples[:, i], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.log_evidence[0], together.log_evidence[i])


def test_each_run_may_know_the_rest_in_its_own_way():
    x, mask = torch.rand(4, 2, 1, 4, 4), noise_masks(2, 4, 4, 0.5)
    found = posterior_inpaint(bumps, x, mask, torch.rand(3, 2, 1, 4, 4), **OPTIONS)
    for run in range(4):
        assert torch.equal(found.samples[run][~mask], x[run][~mask])


def test_nothing_missing_and_everything_missing():
    x = torch.rand(2, 1, 4, 4)
    none = posterior_inpaint(bumps, x, torch.zeros_like(x, dtype=torch.bool), torch.rand(3, 2, 1, 4, 4), **OPTIONS)
    assert torch.equal(none.samples, x.expand(320, 2, 1, 4, 4))
    torch.testing.assert_close(none.log_evidence, bumps(x))
    every = posterior_inpaint(bumps, x, torch.ones_like(x, dtype=torch.bool), torch.rand(3, 2, 1, 4, 4), **OPTIONS)
    assert every.samples.isfinite().all()
    assert every.mean.mean().item() == pytest.approx(0.33, abs=0.05)


def test_a_density_that_turns_nan_is_never_accepted():
    def sometimes_nan(x):
        return torch.where(x[:, 0] > 0.5, math.nan, 0.0 * x[:, 0])

    mask = torch.ones(1, 1, dtype=torch.bool)
    found = posterior_inpaint(sometimes_nan, torch.zeros(1, 1), mask, torch.full((1, 1, 1), 0.2), width=0.2, **OPTIONS)
    assert found.samples.isfinite().all()
    assert (found.samples <= 0.5).all()


def test_the_model_comes_back_as_it_was():
    flow = realnvp(2, layers=2, hidden=(8,)).train()
    posterior_inpaint(flow.log_prob, torch.zeros(1, 2), torch.tensor([[True, False]]), torch.zeros(1, 1, 2), unit_interval=False, **OPTIONS)
    assert flow.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in flow.parameters())


def test_the_step_of_the_temperature_leaves_the_share_that_was_asked_for():
    gain, log_weight = 10 * torch.randn(3, 32, dtype=torch.float64), torch.randn(3, 32, dtype=torch.float64)
    step = next_temperature(gain, log_weight, 0.9, torch.ones(3, 1, dtype=torch.float64))
    weight, increment = log_weight.softmax(1), (step * gain).exp()
    share = (weight * increment).sum(1) ** 2 / (weight * increment**2).sum(1)
    torch.testing.assert_close(share, torch.full_like(share, 0.9))
    assert next_temperature(0 * gain, log_weight, 0.9, torch.full((3, 1), 0.4, dtype=torch.float64)).eq(0.4).all()


def test_r_hat_is_one_for_runs_that_agree_and_large_for_runs_that_do_not():
    same = torch.randn(2, 200, 8, dtype=torch.float64)
    assert (split_r_hat(same, 4) - 1).abs().max() < 0.01
    apart = same + 5 * (torch.arange(8) % 4)
    assert split_r_hat(apart, 4).min() > 3
    drifting = same + torch.linspace(0, 10, 200, dtype=torch.float64)[:, None]
    assert split_r_hat(drifting, 4).min() > 1.5
    assert split_r_hat(torch.ones(1, 4, 8), 4).item() == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(mask=torch.ones(2, 1, 4, 4)), "mask"),
        (dict(x=torch.rand(3, 1, 4, 4)), "mask"),
        (dict(guesses=torch.rand(0, 2, 1, 4, 4)), "guesses"),
        (dict(guesses=torch.rand(2, 1, 4, 4)), "guesses"),
        (dict(runs=0), "runs"),
        (dict(conditional_ess=1.0), "conditional_ess"),
        (dict(width=0.0), "width"),
        (dict(seeds=[1]), "seeds"),
    ],
)
def test_bad_arguments_are_named(change, named):
    good = dict(x=torch.rand(2, 1, 4, 4), mask=torch.ones(2, 1, 4, 4, dtype=torch.bool), guesses=torch.rand(3, 2, 1, 4, 4))
    with pytest.raises(ValueError, match=named):
        posterior_inpaint(bumps, **(good | change))
