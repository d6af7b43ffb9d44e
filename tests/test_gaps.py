"""Fills of tables' gaps, where the right answer is known in closed form."""

import math

import pytest
import torch
from sklearn.mixture import GaussianMixture

from benchmarks.table_gaps import fair_crps
from flowlib.tables.gaps import ENOUGH, POPULATION, fill_gaps
from flowlib.toy2d import TwoMoons
from flows2d import Flow, MixtureBase


class Known:
    """A known density in the place of a flow."""

    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, log_prob):
        self.log_prob = log_prob


def mixture(means, covariances, weights) -> MixtureBase:
    parts = [torch.as_tensor(part).double() for part in (means, covariances, weights)]
    return MixtureBase(*parts)


def gaussian(dim: int) -> MixtureBase:
    factor = torch.randn(1, dim, dim).double()
    covariance = factor @ factor.mT / dim + 0.2 * torch.eye(dim).double()
    return mixture(torch.randn(1, dim), covariance, [1.0])


def covariance_of(one: MixtureBase) -> torch.Tensor:
    """The covariance of a mixture's first mode."""
    factor = one.from_noise(torch.eye(one.dim).double(), 0) - one.means[0]
    return (factor.mT @ factor).detach()


def with_gaps(rows, share: float = 0.3):
    return torch.where(torch.rand(rows.shape) < share, math.nan, rows)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_gaussians_fills_have_its_conditional_mean_and_width(is_right):
    """With the Gaussian itself proposing, and with one that is shifted and too wide."""
    flow = gaussian(5)
    covariance = covariance_of(flow)
    proposal = flow
    if not is_right:
        proposal = mixture(flow.means + 0.5, 1.5 * covariance[None], [1.0])
    rows = flow.sample(200)
    rows[:, [0, 3]] = math.nan
    filled = fill_gaps(Flow([], 5, flow), proposal, rows, 0, draws=POPULATION)

    missing = torch.tensor([True, False, False, True, False])
    gain = (
        covariance[missing][:, ~missing] @ covariance[~missing][:, ~missing].inverse()
    )
    away = rows[:, ~missing] - flow.means[:, ~missing]
    mean = flow.means[:, missing] + away @ gain.T
    left = covariance[missing][:, missing] - gain @ covariance[~missing][:, missing]
    std = left.diagonal().sqrt()

    # 256 independent draws would be off by 1/16 of a standard deviation.
    error = (filled.mean[:, missing] - mean) / std
    assert error.square().mean().sqrt() < 0.08
    assert error.mean().abs() < 0.02
    width = filled.samples[:, :, missing].std(1) / std
    assert width.mean() == pytest.approx(1, abs=0.02)


def test_modes_have_their_weights_though_the_proposal_has_them_wrong():
    dim = 6
    means = torch.zeros(2, dim)
    means[1] = 1.5
    identity = torch.eye(dim).expand(2, -1, -1)
    target = mixture(means, 0.5 * identity, [0.3, 0.7])
    proposal = mixture(means + 0.4, 0.8 * identity, [0.8, 0.2])
    rows = target.sample(40)
    rows[:, :5] = math.nan
    flow = Flow([], dim, target)
    filled = fill_gaps(flow, proposal, rows, 0, draws=POPULATION)
    assert (filled.effective < ENOUGH).any()  # the way in steps is tested too

    seen = (rows[:, 5:] - means[:, 5]).square() / 0.5  # (40, 2)
    exact = (target.log_weights - seen / 2).softmax(1)
    found = target.responsibilities(filled.samples.flatten(0, 1))
    found = found.unflatten(0, (40, -1)).mean(1)
    error = (found - exact)[:, 0].abs()
    assert error.mean() < 0.05
    assert (found - exact)[:, 0].mean().abs() < 0.02


def test_two_moons_fills_are_on_both_moons_as_often_as_is_right():
    truth = TwoMoons(0.1)
    generator = torch.Generator().manual_seed(0)
    train = truth.sample(2000, generator)
    fitted = GaussianMixture(6, random_state=0).fit(train.numpy())
    proposal = mixture(fitted.means_, fitted.covariances_, fitted.weights_)
    rows = truth.sample(200, generator).double()
    hidden = torch.arange(200) % 2
    holes = rows.clone()
    holes[torch.arange(200), hidden] = math.nan
    filled = fill_gaps(Known(truth.log_prob), proposal, holes, 0, draws=POPULATION)

    line = torch.linspace(-2, 3, 1001).double()
    errors = []
    masses = []
    for row, samples, column in zip(holes, filled.samples, hidden):
        points = row.repeat(len(line), 1)
        points[:, column] = line
        joint = truth.log_joint(points).exp()  # (1001, 2)
        exact = joint.sum(0) / joint.sum()
        found = truth.log_joint(samples).softmax(1).mean(0)
        errors.append((found - exact)[0].abs())
        # the exact probability of the interval between the 5 % and the 95 % quantile
        ends = samples[:, column].sort().values[[12, -13]]
        between = (line > ends[0]) & (line < ends[1])
        masses.append(joint[between].sum() / joint.sum())
    assert torch.stack(errors).mean() < 0.02
    assert torch.stack(errors).max() < 0.1
    assert 0.88 < torch.stack(masses).mean() < 0.92


def test_columns_of_any_scale_are_filled_alike():
    flow = gaussian(4)
    rows = with_gaps(flow.sample(20))
    scale = torch.tensor([1e-3, 1.0, 1e5, 1e-6]).double()
    offset = torch.tensor([0.0, 0.0, 1e7, 1e-3]).double()
    covariance = covariance_of(flow) * scale * scale[:, None]
    scaled = mixture(flow.means * scale + offset, covariance[None], [1.0])
    shifted = mixture(flow.means + 0.5, covariance_of(flow)[None], [1.0])
    scaled_shifted = mixture(
        (flow.means + 0.5) * scale + offset, covariance[None], [1.0]
    )
    expected = fill_gaps(Flow([], 4, flow), shifted, rows, 0)
    found = fill_gaps(Flow([], 4, scaled), scaled_shifted, rows * scale + offset, 0)
    torch.testing.assert_close(
        (found.samples - offset) / scale, expected.samples, rtol=1e-4, atol=1e-4
    )


def test_observed_cells_stay_and_a_row_does_not_depend_on_the_others():
    flow = gaussian(3)
    rows = flow.sample(6)
    rows[0, 1] = math.nan
    rows[2] = math.nan
    rows[3, :2] = math.nan
    rows[5, 0] = math.nan
    shifted = mixture(flow.means + 1.5, covariance_of(flow)[None], [1.0])
    filled = fill_gaps(Flow([], 3, flow), shifted, rows, seed=3)
    seen = ~rows.isnan()
    assert torch.equal(filled.mean[seen], rows[seen])
    for draw in filled.samples.unbind(1):
        assert torch.equal(draw[seen], rows[seen])
    assert filled.samples.shape == (6, 12, 3)
    assert filled.samples.isfinite().all()
    assert torch.equal(filled.mean[1], rows[1])  # a row without gaps

    # The other rows have other cells and other gaps, and some are not there.
    others = rows.clone()
    others[0] = math.nan
    others[2, 0] = 0.0
    again = fill_gaps(Flow([], 3, flow), shifted, others[:4], seed=3)
    for row in (1, 3):
        assert torch.equal(again.samples[row], filled.samples[row])
    same = fill_gaps(Flow([], 3, flow), shifted, rows, seed=3)
    assert torch.equal(same.samples, filled.samples)
    other_seed = fill_gaps(Flow([], 3, flow), shifted, rows, seed=4)
    assert not torch.equal(other_seed.samples[0], filled.samples[0])


def test_a_row_of_gaps_alone_is_filled_with_draws_of_the_flow():
    target = mixture(
        [[-2.0, 0.0], [2.0, 0.0]], torch.eye(2).expand(2, 2, 2), [0.8, 0.2]
    )
    proposal = mixture([[0.5, 0.5]], 4 * torch.eye(2)[None], [1.0])
    rows = torch.full((30, 2), math.nan)
    filled = fill_gaps(Flow([], 2, target), proposal, rows, 0, draws=POPULATION)
    share = (filled.samples[:, :, 0] < 0).double().mean(1)
    exact = 0.8 * 0.97725 + 0.2 * 0.02275
    assert (share - exact).abs().mean() < 0.05
    assert share.mean() == pytest.approx(exact, abs=0.02)


def test_a_density_that_is_not_a_number_somewhere_gets_no_fill_there():
    flow = gaussian(2)

    def half(x):
        return torch.where(x[:, 0] > 0, flow.log_prob(x), math.nan)

    rows = torch.tensor([[math.nan, 0.0]]).double()
    filled = fill_gaps(Known(half), flow, rows, 0)
    assert (filled.samples[..., 0] > 0).all()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 2, 2)])
def test_rows_that_do_not_fit_are_one_line(shape):
    with pytest.raises(ValueError, match=r"rows must be of shape \(N, 2\), not \("):
        fill_gaps(Flow([], 2), gaussian(2), torch.zeros(shape), 0)


def test_the_fair_crps_does_not_depend_on_how_many_samples_there_are():
    truth = torch.randn(40_000).double()
    few = fair_crps(torch.randn(40_000, 3).double(), truth)
    many = fair_crps(torch.randn(40_000, 60).double(), truth)
    exact = 1 / math.sqrt(math.pi)  # of a standard normal under itself
    for scores in (few, many):
        assert scores.mean() == pytest.approx(exact, abs=4 * scores.std().item() / 200)
