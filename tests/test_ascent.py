import math

import pytest
import torch

from flowlib.inpainting.ascent import BETAS, Adam, find_map
from flowlib.inpainting.density import HoleDensity
from flowlib.inpainting.masks import make_masks
from flows2d import realnvp


def gaussian(dim=4):
    """A correlated Gaussian, and its exact conditional mean of the missing entries."""
    factor = torch.randn(dim, dim, dtype=torch.float64)
    covariance = factor @ factor.T + 0.5 * torch.eye(dim, dtype=torch.float64)
    mean = torch.randn(dim, dtype=torch.float64)

    def conditional_mean(x, missing):
        seen = ~missing
        residual = torch.linalg.solve(covariance[seen][:, seen], x[seen] - mean[seen])
        return mean[missing] + covariance[missing][:, seen] @ residual

    return torch.distributions.MultivariateNormal(mean, covariance), conditional_mean


def bumps(v):
    """A density-like function on (0, 1), coupled, whose maximum is at 0.3."""
    flat = v.flatten(1)
    return -((flat - 0.3) ** 2).sum(1) * 20 - 5 * (flat.mean(1) - 0.3) ** 2


def test_map_on_a_gaussian_is_the_closed_form_conditional_mean():
    gauss, conditional_mean = gaussian()
    x = torch.randn(6, 4, dtype=torch.float64)
    mask = torch.rand(6, 4).argsort(1) < torch.tensor([[1], [2], [3], [1], [2], [3]])
    density = HoleDensity(gauss.log_prob, x, mask, unit_interval=False)
    starts = torch.randn(6, 2, 4, dtype=torch.float64)
    found = find_map(density, starts, steps=3000, lr=0.1, final_lr=1e-5)
    for i in range(6):
        expected = conditional_mean(x[i], mask[i])
        torch.testing.assert_close(found[i, mask[i]], expected, rtol=0, atol=1e-4)


def test_the_maximum_is_that_of_the_density_of_x_not_of_y():
    """Beta(2, 3) has its maximum at 1/3; the density of its logit has one at 2/5."""

    def beta(x):
        return (x.log() + 2 * (1 - x).log()).sum(1)

    density = HoleDensity(beta, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    found = find_map(density, torch.full((1, 1, 1), 0.8), steps=500)
    assert found.item() == pytest.approx(1 / 3, abs=1e-3)


def test_observed_entries_come_back_bit_for_bit_and_fills_stay_inside():
    x, mask = torch.rand(5, 1, 8, 8), make_masks("noise:0.5", 5, 8, 8)
    found = find_map(HoleDensity(bumps, x, mask), torch.rand(5, 3, 1, 8, 8), steps=20)
    assert torch.equal(found[~mask], x[~mask])
    assert ((found > 0) & (found < 1)).all()
    assert not torch.equal(found[mask], x[mask])


@pytest.mark.parametrize("under_the_hole", [0.0, 0.77, math.nan, math.inf])
def test_what_lies_under_the_hole_changes_nothing(under_the_hole):
    x = torch.rand(4, 1, 8, 8)
    mask = make_masks("square:4", 4, 8, 8)
    starts = torch.rand(4, 2, 1, 8, 8)
    expected = find_map(HoleDensity(bumps, x, mask), starts, steps=10)
    with torch.no_grad():  # nor does it matter whether the caller wants gradients
        again = find_map(HoleDensity(bumps, x, mask), starts, steps=10)
    assert torch.equal(again, expected)
    tampered = torch.where(mask, torch.full_like(x, under_the_hole), x)
    assert torch.equal(
        find_map(HoleDensity(bumps, tampered, mask), starts, steps=10), expected
    )


def test_a_batch_equals_its_examples_one_by_one():
    flow = realnvp(2, layers=4, hidden=(16,)).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    x = torch.randn(5, 2, dtype=torch.float64)
    mask = torch.tensor([[False, True]]).expand(5, 2)
    starts = torch.randn(5, 3, 2, dtype=torch.float64)

    def run(part):
        density = HoleDensity(flow.log_prob, x[part], mask[part], unit_interval=False)
        return find_map(density, starts[part], steps=50)

    together = run(slice(None))
    for i in range(5):
        torch.testing.assert_close(
            run(slice(i, i + 1))[0], together[i], rtol=0, atol=1e-9
        )


def line(log_prob):
    return HoleDensity(
        log_prob, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), False
    )


def test_the_best_start_wins_and_no_result_is_worse_than_its_start():
    def two_peaks(x):  # the higher one at +2
        peaks = [-20 * (x[:, 0] - 2) ** 2 + 1, -20 * (x[:, 0] + 2) ** 2]
        return torch.logsumexp(torch.stack(peaks), dim=0)

    starts = torch.tensor([[[-2.0], [1.7]]])  # the first one is the likelier
    assert find_map(line(two_peaks), starts, steps=0).item() == pytest.approx(-2)
    assert find_map(line(two_peaks), starts, steps=200).item() == pytest.approx(
        2, abs=1e-2
    )
    for start, peak in zip(starts.unbind(1), (-2, 2)):
        found = find_map(line(two_peaks), start[:, None], steps=200)
        assert found.item() == pytest.approx(peak, abs=1e-2)
        assert two_peaks(found) >= two_peaks(start)


def test_a_huge_learning_rate_still_never_ends_below_the_start():
    density = HoleDensity(
        bumps, torch.rand(4, 1, 8, 8), make_masks("square:4", 4, 8, 8)
    )
    starts = torch.full((4, 1, 1, 8, 8), 0.3)
    found = find_map(density, starts, steps=10, lr=50.0)
    start_log_prob = bumps(density.decode(density.encode(starts))[:, 0])
    assert (bumps(found) >= start_log_prob).all()


def test_an_example_that_turns_nan_leaves_the_others_alone():
    def sometimes_nan(x):
        return torch.where(x[:, 0] > 0.5, math.nan, -((x[:, 0] - 0.2) ** 2))

    density = HoleDensity(
        sometimes_nan, torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
    )
    found = find_map(density, torch.tensor([[[0.9]], [[0.4]]]), steps=300)
    assert found[1].item() == pytest.approx(0.2, abs=0.02)
    assert found.isfinite().all()


def test_nothing_missing_and_everything_missing():
    x, mask = torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    starts = torch.rand(2, 1, 1, 8, 8)
    assert torch.equal(find_map(HoleDensity(bumps, x, mask), starts, steps=5), x)
    every = find_map(HoleDensity(bumps, x, ~mask), starts, steps=400)
    torch.testing.assert_close(every, torch.full_like(x, 0.3), rtol=0, atol=0.01)


def test_the_model_comes_back_as_it_was():
    flow = realnvp(2, layers=2, hidden=(8,)).train()
    flow.transforms[0].eval()
    next(flow.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flags = [parameter.requires_grad for parameter in flow.parameters()]
    density = HoleDensity(
        flow.log_prob, torch.zeros(1, 2), torch.tensor([[True, False]]), False
    )
    find_map(density, torch.zeros(1, 1, 2), steps=5)
    assert [parameter.requires_grad for parameter in flow.parameters()] == flags
    assert all(parameter.grad is None for parameter in flow.parameters())
    assert flow.training
    assert not flow.transforms[0].training
    assert all(
        torch.equal(value, before[name]) for name, value in flow.state_dict().items()
    )


@pytest.mark.parametrize(
    ("starts", "options", "named"),
    [
        (torch.rand(2, 1, 8, 8), {}, "starts"),
        (torch.rand(2, 0, 1, 8, 8), {}, "starts"),
        (torch.rand(2, 1, 1, 8, 8), {"steps": -1}, "steps"),
        (torch.rand(2, 1, 1, 8, 8), {"lr": 0}, "lr"),
    ],
)
def test_bad_arguments_are_named(starts, options, named):
    density = HoleDensity(
        bumps, torch.rand(2, 1, 8, 8), make_masks("square:4", 2, 8, 8)
    )
    with pytest.raises(ValueError, match=named):
        find_map(density, starts, **options)


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_adam_takes_the_steps_of_torchs_own_uphill(eps):
    y = torch.randn(3, 4, 50, dtype=torch.float64)
    weights = y.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], betas=BETAS, eps=eps, maximize=True)
    adam = Adam(y, eps)
    for lr in (0.3, 0.2, 0.1, 0.05):
        grad = torch.randn_like(y) * 10 ** torch.randn_like(y)
        weights.grad, optimizer.param_groups[0]["lr"] = grad.clone(), lr
        optimizer.step()
        y = adam.step(y, grad, lr)
        torch.testing.assert_close(y, weights.detach(), rtol=1e-12, atol=1e-12)


def test_an_entry_without_a_finite_gradient_stays_where_it_is():
    y, grad = torch.zeros(4), torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    assert Adam(y).step(y, grad, lr=0.1).tolist() == pytest.approx([0, 0, 0, 0.1])
