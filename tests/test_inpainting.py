import math

import pytest
import torch

from flowlib.inpainting.density import frozen
from flowlib.inpainting.map_estimate import map_inpaint, nearest_neighbours
from flowlib.inpainting.masks import half_masks, make_masks, noise_masks, square_masks
from flows2d import realnvp


def gaussian(dim=4):
    """A correlated Gaussian, and its exact conditional mean of the missing entries."""
    factor = torch.randn(dim, dim, dtype=torch.float64)
    covariance = factor @ factor.T + 0.5 * torch.eye(dim, dtype=torch.float64)
    mean = torch.randn(dim, dtype=torch.float64)

    def conditional_mean(x, missing):
        known = ~missing
        shift = covariance[missing][:, known] @ torch.linalg.solve(covariance[known][:, known], x[known] - mean[known])
        return mean[missing] + shift

    return torch.distributions.MultivariateNormal(mean, covariance), conditional_mean


def bumps(v):
    """A density-like function on (0, 1) with one maximum per pixel, at 0.3, coupled between the pixels."""
    flat = v.flatten(1)
    return -((flat - 0.3) ** 2).sum(1) * 20 - 5 * (flat.mean(1) - 0.3) ** 2


def test_map_on_a_gaussian_is_the_closed_form_conditional_mean():
    density, conditional_mean = gaussian()
    x = torch.randn(6, 4, dtype=torch.float64)
    mask = torch.rand(6, 4).argsort(1) < torch.tensor([[1], [2], [3], [1], [2], [3]])
    starts = torch.randn(2, 6, 4, dtype=torch.float64)
    found = map_inpaint(density.log_prob, x, mask, starts, steps=3000, lr=0.1, final_lr=1e-5, unit_interval=False)
    for i in range(6):
        torch.testing.assert_close(found.x[i, mask[i]], conditional_mean(x[i], mask[i]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.log_prob, density.log_prob(found.x))


def test_known_entries_come_back_bit_for_bit_and_fills_stay_inside():
    x = torch.rand(5, 1, 8, 8)
    mask = noise_masks(5, 8, 8, 0.5)
    found = map_inpaint(bumps, x, mask, torch.rand(3, 5, 1, 8, 8), steps=20)
    assert torch.equal(found.x[~mask], x[~mask])
    assert torch.equal(found.start_x[~mask], x[~mask])
    assert ((found.x > 0) & (found.x < 1)).all()
    assert not torch.equal(found.x[mask], x[mask])


@pytest.mark.parametrize("under_the_hole", [0.0, 0.77, float("nan"), float("inf")])
def test_what_lies_under_the_hole_changes_nothing(under_the_hole):
    x = torch.rand(4, 1, 8, 8)
    mask = square_masks(4, 8, 8, 4)
    starts = torch.rand(2, 4, 1, 8, 8)
    expected = map_inpaint(bumps, x, mask, starts, steps=10)
    with torch.no_grad():  # nor does it matter whether the caller wants gradients
        again = map_inpaint(bumps, x, mask, starts, steps=10)
    assert torch.equal(again.x, expected.x)
    found = map_inpaint(bumps, torch.where(mask, torch.full_like(x, under_the_hole), x), mask, starts, steps=10)
    for a, b in zip(found, expected):
        assert torch.equal(a, b)


def test_a_batch_equals_its_examples_one_by_one():
    flow = realnvp(2, layers=4, hidden=(16,)).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    x = torch.randn(5, 2, dtype=torch.float64)
    mask = torch.tensor([[False, True]]).expand(5, 2)
    starts = torch.randn(3, 5, 2, dtype=torch.float64)
    together = map_inpaint(flow.log_prob, x, mask, starts, steps=50, unit_interval=False)
    for i in range(5):
        alone = map_inpaint(flow.log_prob, x[i : i + 1], mask[i : i + 1], starts[:, i : i + 1], steps=50, unit_interval=False)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-9)
        assert alone.start.item() == together.start[i]


def test_the_best_start_wins_and_no_result_is_worse_than_its_start():
    def two_peaks(x):  # the higher one at +2
        return torch.logsumexp(torch.stack([-20 * (x[:, 0] - 2) ** 2 + 1, -20 * (x[:, 0] + 2) ** 2]), dim=0)

    starts = torch.tensor([[[-1.9]], [[1.8]]])
    found = map_inpaint(two_peaks, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), starts, steps=200, unit_interval=False)
    assert found.start.item() == 1
    assert found.x.item() == pytest.approx(2, abs=1e-2)
    assert found.start_x.item() == pytest.approx(1.8)
    assert found.all_x.flatten().tolist() == pytest.approx([-2, 2], abs=1e-2)
    assert (found.all_log_prob[:, 0] >= two_peaks(starts[:, 0])).all()
    assert found.log_prob.item() >= found.start_log_prob.item()


def test_a_huge_learning_rate_still_never_ends_below_the_start():
    x, mask, starts = torch.rand(4, 1, 8, 8), square_masks(4, 8, 8, 4), torch.full((1, 4, 1, 8, 8), 0.3)
    found = map_inpaint(bumps, x, mask, starts, steps=10, lr=50.0)
    assert (found.log_prob >= found.start_log_prob).all()


def test_an_example_that_turns_nan_leaves_the_others_alone():
    def sometimes_nan(x):
        return torch.where(x[:, 0] > 0.5, torch.full_like(x[:, 0], math.nan), -((x[:, 0] - 0.2) ** 2))

    mask = torch.ones(2, 1, dtype=torch.bool)
    found = map_inpaint(sometimes_nan, torch.zeros(2, 1), mask, torch.tensor([[[0.9], [0.4]]]), steps=300)
    assert found.x[1].item() == pytest.approx(0.2, abs=0.02)
    assert found.x.isfinite().all()


def test_nothing_missing_and_everything_missing():
    x = torch.rand(2, 1, 8, 8)
    none = map_inpaint(bumps, x, torch.zeros_like(x, dtype=torch.bool), torch.rand(1, 2, 1, 8, 8), steps=5)
    assert torch.equal(none.x, x)
    every = map_inpaint(bumps, x, torch.ones_like(x, dtype=torch.bool), torch.rand(1, 2, 1, 8, 8), steps=400)
    torch.testing.assert_close(every.x, torch.full_like(x, 0.3), rtol=0, atol=0.01)


def test_the_model_comes_back_as_it_was():
    flow = realnvp(2, layers=2, hidden=(8,)).train()
    flow.transforms[0].eval()
    next(flow.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flags = [parameter.requires_grad for parameter in flow.parameters()]
    with frozen(flow.log_prob):
        assert not any(parameter.requires_grad for parameter in flow.parameters())
        assert not flow.training
    mask = torch.tensor([[True, False]])
    map_inpaint(flow.log_prob, torch.zeros(1, 2), mask, torch.zeros(1, 1, 2), steps=5, unit_interval=False)
    assert [parameter.requires_grad for parameter in flow.parameters()] == flags
    assert all(parameter.grad is None for parameter in flow.parameters())
    assert flow.training
    assert not flow.transforms[0].training
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_square_masks_are_squares_anywhere():
    masks = square_masks(400, 8, 10, 3, torch.Generator().manual_seed(0))
    assert masks.shape == (400, 1, 8, 10)
    assert (masks.flatten(1).sum(1) == 9).all()
    assert (masks.any(2).sum(-1) == 3).all()
    assert (masks.any(3).sum(-1) == 3).all()
    assert masks.any(0).all()  # every place is reached


def test_noise_masks_miss_the_exact_share():
    masks = noise_masks(200, 8, 8, 0.25, torch.Generator().manual_seed(0))
    assert masks.shape == (200, 1, 8, 8)
    assert (masks.flatten(1).sum(1) == 16).all()
    assert masks.float().mean(0).max() < 0.5
    assert noise_masks(1, 8, 8, 1.0).all()
    assert not noise_masks(1, 8, 8, 0.0).any()


def test_half_masks_and_names():
    top, bottom, left, right = (half_masks(2, 6, 4, side) for side in ("top", "bottom", "left", "right"))
    assert top[:, :, :3].all()
    assert torch.equal(bottom, ~top)
    assert left[..., :2].all()
    assert torch.equal(right, ~left)
    assert torch.equal(make_masks("left", 2, 6, 4), left)
    assert make_masks("square:3", 5, 8, 8).sum() == 45
    assert make_masks("noise:0.25", 1, 8, 8).sum() == 16


def test_the_ascent_stops_at_the_log_prob_that_is_asked_for():
    x, mask, starts = torch.rand(4, 1, 8, 8), square_masks(4, 8, 8, 4), torch.full((1, 4, 1, 8, 8), 0.9)
    free = map_inpaint(bumps, x, mask, starts, steps=200)
    level = (free.log_prob + free.start_log_prob).mean().item() / 2
    stopped = map_inpaint(bumps, x, mask, starts, steps=200, stop_at=level)
    assert (stopped.log_prob < free.log_prob - 0.1).any()
    assert (stopped.log_prob >= torch.minimum(free.log_prob, torch.tensor(level)) - 1e-4).all()


def test_nearest_neighbours_are_those_of_a_plain_search_over_known_entries():
    x, bank = torch.rand(5, 1, 8, 8), torch.rand(40, 1, 8, 8)
    mask = noise_masks(5, 8, 8, 0.5)
    distance = torch.where(mask[:, None], torch.zeros(()), (x[:, None] - bank).square()).flatten(2).sum(2)
    assert torch.equal(nearest_neighbours(torch.where(mask, torch.nan, x), mask, bank, 3), distance.argsort(1)[:, :3])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, mask, starts: map_inpaint(bumps, x, mask.float(), starts), "mask"),
        (lambda x, mask, starts: map_inpaint(bumps, x, mask[:1], starts), "mask"),
        (lambda x, mask, starts: map_inpaint(bumps, x, mask, starts[0]), "starts"),
        (lambda x, mask, starts: map_inpaint(bumps, x, mask, starts[:0]), "starts"),
        (lambda x, mask, starts: map_inpaint(bumps, x, mask, starts, steps=-1), "steps"),
        (lambda x, mask, starts: map_inpaint(bumps, x, mask, starts, lr=0), "lr"),
        (lambda *_: square_masks(1, 8, 8, 9), "side"),
        (lambda *_: square_masks(0, 8, 8, 2), "n positive"),
        (lambda *_: noise_masks(1, 8, 8, 1.5), "fraction"),
    ],
)
def test_bad_arguments_are_named(call, named):
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match=named):
        call(x, square_masks(2, 8, 8, 4), torch.rand(1, 2, 1, 8, 8))
