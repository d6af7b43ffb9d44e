import math

import pytest
import torch

from flowlib.inpainting.density import HoleDensity
from flowlib.inpainting.masks import make_masks
from flowlib.rng import Streams
from flowlib.tables.hmc import sample_hmc
from flows2d import realnvp


def bumps(v):
    """A log-density on (0, 1), coupled between the pixels."""
    flat = v.flatten(1)
    return -((flat - 0.3) ** 2).sum(1) * 20 - 5 * (flat.mean(1) - 0.3) ** 2


def run(density, fills, seeds=None, width=0.5, **options):
    y = density.encode(fills)
    streams = Streams(seeds or range(len(y)), "test", y)
    options = {"moves": 10, "leapfrog": 4} | options
    width = width * density.hole.expand_as(y)
    return density.decode(sample_hmc(density, y, width, streams, **options))


def test_on_a_gaussian_mean_and_covariance_are_the_closed_form_conditional_ones():
    factor = torch.randn(4, 4, dtype=torch.float64)
    covariance = factor @ factor.T + 0.5 * torch.eye(4, dtype=torch.float64)
    gauss = torch.distributions.MultivariateNormal(
        torch.randn(4, dtype=torch.float64), covariance
    )
    x, missing = (
        torch.randn(4, dtype=torch.float64),
        torch.tensor([True, False, True, False]),
    )
    seen = ~missing
    gain = covariance[missing][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    mean = gauss.loc[missing] + gain @ (x[seen] - gauss.loc[seen])
    spread = covariance[missing][:, missing] - gain @ covariance[seen][:, missing]
    density = HoleDensity(
        gauss.log_prob, x[None], missing[None], unit_interval=False, chunk=4000
    )
    starts = 3 * torch.randn(1, 4000, 4, dtype=torch.float64)
    filled = run(density, starts, width=1.0, moves=40, leapfrog=6)
    samples, deviation = filled[0][:, missing], spread.diagonal().sqrt()
    # 4,000 independent chains: the standard error of a mean is 0.016 deviations, that
    # of a correlation at most 0.016; the bounds are four of them.
    assert ((samples.mean(0) - mean).abs() < 0.064 * deviation).all()
    scaled = [
        matrix / deviation[:, None] / deviation for matrix in (samples.T.cov(), spread)
    ]
    torch.testing.assert_close(*scaled, rtol=0, atol=0.09)
    # One move more, which adapts no more: a chain that differs has accepted it.
    longer = run(density, starts, width=1.0, moves=41, leapfrog=6)
    assert 0.5 < (longer != filled).any(-1).double().mean() < 0.9


def test_steps_that_are_too_wide_become_narrower():
    normal = torch.distributions.Normal(0.0, 1.0)
    x, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    density = HoleDensity(
        lambda x: normal.log_prob(x[:, 0]), x, mask, unit_interval=False
    )
    starts = torch.randn(1, 500, 1)
    # Steps of 20 standard deviations: without the adaptation no move is accepted.
    moved = run(density, starts, width=100.0, moves=1) != starts
    assert moved.float().mean() < 0.2
    moved = run(density, starts, width=100.0, moves=40) != starts
    assert moved.float().mean() > 0.99


def test_on_a_flow_the_samples_have_the_conditional_distribution_by_quadrature():
    flow = realnvp(2, layers=4, hidden=(16,)).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, 0, 0.4)
    grid = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    with torch.no_grad():
        exact = flow.log_prob(torch.stack([torch.full_like(grid, 0.3), grid], 1)).exp()
    cdf = torch.cumulative_trapezoid(exact, grid) / torch.trapezoid(exact, grid)
    x, mask = (
        torch.tensor([[0.3, math.nan]], dtype=torch.float64),
        torch.tensor([[False, True]]),
    )
    density = HoleDensity(flow.log_prob, x, mask, unit_interval=False, chunk=1000)
    # From exact draws the chains must stay in the distribution; a wrong acceptance
    # leaves it.
    places = torch.searchsorted(cdf, torch.rand(600, dtype=torch.float64)).clamp(
        max=8000
    )
    starts = torch.stack(
        [torch.full((600,), 0.3, dtype=torch.float64), grid[places]], 1
    )[None]
    filled = run(density, starts, moves=10, leapfrog=3)
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):  # four standard errors
        quantile = grid[1:][(cdf < q).sum()]
        below = (filled[0, :, 1] <= quantile).double().mean().item()
        assert below == pytest.approx(q, abs=4 * math.sqrt(q * (1 - q) / 600))


def test_moves_leave_a_gaussian_as_it_is():
    """Gandy and Scott (2020), arXiv:2001.06465: an exact test of a reversible kernel.

    A chain of five states goes through an exact draw at a random place, before which it
    ran backwards. The draw's rank among the five is then uniform, however few the
    states.
    """
    covariance = torch.tensor(
        [[2, 0.8, 0], [0.8, 1, 0], [0, 0, 0.5]], dtype=torch.float64
    )
    zero = torch.zeros(3, dtype=torch.float64)
    gauss = torch.distributions.MultivariateNormal(zero, covariance)
    x, mask = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    density = HoleDensity(gauss.log_prob, x, mask, unit_interval=False, chunk=4000)
    torch.manual_seed(0)
    draw, length = gauss.sample((1, 4000)), 4
    both = []
    for direction in (0, 1):  # a reversible kernel is its own reverse
        states = [draw]
        # one move a call: its step size is that of its start, 0.2
        for step in range(length):
            seeds = [10 * direction + step]
            states.append(run(density, states[-1], seeds, 6.0, moves=1))
        both.append(torch.stack(states[1:]))  # (length, 1, 4000, 3)
    # how many states of a chain come before
    backward = torch.randint(length + 1, (4000,))
    place = torch.arange(length)[:, None]
    # (2 length, 4000)
    chosen = torch.cat([place < backward, place < length - backward])
    moved = (torch.cat(both) - draw).abs().sum(-1)[:, 0]
    # some are rejected, so acceptance matters
    assert 0.3 < (moved > 0).double().mean() < 0.99
    for statistic in (gauss.log_prob, lambda x: x[..., 0]):
        values = statistic(torch.cat(both))[:, 0]  # (2 length, 4000)
        below = values < statistic(draw)[0]
        tied = (values == statistic(draw)[0]) & chosen
        rank = (below & chosen).sum(0) + (torch.rand(4000) * (tied.sum(0) + 1)).long()
        counts = torch.bincount(rank, minlength=length + 1)
        chi_squared = ((counts - 800) ** 2 / 800).sum()
        assert chi_squared < 23.5  # four degrees of freedom: p = 1e-4


def test_observed_entries_stay_and_what_lies_under_the_hole_changes_nothing():
    x, mask, fills = (
        torch.rand(3, 1, 4, 4),
        make_masks("noise:0.5", 3, 4, 4),
        torch.rand(3, 6, 1, 4, 4),
    )
    expected = run(HoleDensity(bumps, x, mask), fills)
    seen = ~mask[:, None].expand_as(expected)
    assert torch.equal(expected[seen], x[:, None].expand_as(expected)[seen])
    assert ((expected > 0) & (expected < 1)).all()
    for under in (0.0, 0.9, math.nan):
        density = HoleDensity(bumps, torch.where(mask, under, x), mask)
        again = run(density, torch.where(mask[:, None], fills, under))
        assert torch.equal(again, expected)


def test_a_batch_equals_its_examples_one_by_one():
    x, mask = (
        torch.rand(3, 1, 4, 4, dtype=torch.float64),
        make_masks("noise:0.5", 3, 4, 4),
    )
    fills, seeds = torch.rand(3, 6, 1, 4, 4, dtype=torch.float64), [5, 3, 8]
    together = run(HoleDensity(bumps, x, mask), fills, seeds)
    for i in range(3):
        part = slice(i, i + 1)
        alone = run(HoleDensity(bumps, x[part], mask[part]), fills[part], seeds[part])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)


def test_nothing_missing_and_everything_missing():
    x, nothing = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    filled = run(HoleDensity(bumps, x, nothing), torch.rand(2, 3, 1, 4, 4))
    assert torch.equal(filled, x[:, None].expand_as(filled))
    filled = run(HoleDensity(bumps, x, ~nothing), torch.rand(2, 100, 1, 4, 4), moves=30)
    assert filled.mean().item() == pytest.approx(0.33, abs=0.05)


def test_a_density_that_turns_nan_is_never_accepted():
    def sometimes_nan(x):
        return torch.where(x[:, 0] > 0.5, math.nan, 0.0 * x[:, 0])

    density = HoleDensity(
        sometimes_nan, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    )
    filled = run(density, torch.full((1, 20, 1), 0.2))
    assert filled.isfinite().all()
    assert (filled <= 0.5).all()


def test_the_model_comes_back_as_it_was():
    flow = realnvp(2, layers=2, hidden=(8,)).train()
    density = HoleDensity(
        flow.log_prob, torch.zeros(1, 2), torch.tensor([[True, False]]), False
    )
    run(density, torch.zeros(1, 3, 2))
    assert flow.training
    assert all(
        parameter.requires_grad and parameter.grad is None
        for parameter in flow.parameters()
    )


@pytest.mark.parametrize("options", [{"moves": 0}, {"leapfrog": 0}])
def test_bad_arguments_are_named(options):
    density = HoleDensity(
        bumps, torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    )
    with pytest.raises(ValueError, match="moves and leapfrog"):
        run(density, torch.rand(2, 3, 1, 4, 4), **options)
