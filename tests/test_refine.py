import math

import pytest
import torch

from flowlib.inpainting.density import HoleDensity
from flowlib.inpainting.masks import make_masks
from flowlib.inpainting.refine import (
    LANGEVIN_STEP,
    add_noise,
    nearest_images,
    random_patches,
    refine_fills,
    similar_images,
)
from flowlib.rng import Streams
from flows2d import realnvp

BRIGHT = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])[None]
ALL = torch.ones(2, 1, 4, 4, dtype=torch.bool)


def two_valued(v):
    """Every pixel is dark or bright, rather as in BRIGHT; no ascent leads across."""
    distance = torch.stack([(v - 0.1).square(), (v - 0.9).square()])
    preference = torch.stack([-4.0 * BRIGHT, -4.0 * (1 - BRIGHT)])[:, None]
    return (preference - 200 * distance).logsumexp(0).flatten(1).sum(1)


def refine(
    log_prob, x, mask, fills, similar=None, seeds=None, unit_interval=True, **options
):
    """The refined fills, (B, C, *shape); by default they are their own similar."""
    density = HoleDensity(log_prob, x, mask, unit_interval)
    streams = Streams(seeds or range(len(mask)), "test", fills)
    similar = density.encode(fills if similar is None else similar)
    y = density.encode(fills)
    *_, y = refine_fills(density, y, similar, streams, **options)
    return density.decode(y)


def test_exchanges_find_what_ascents_alone_do_not():
    fills = torch.where(BRIGHT * torch.ones(2, 12, 1, 1, 1) > 0, 0.15, 0.85)
    for i in range(12):  # each is right in one quarter
        row, column = 2 * (i % 4 // 2), 2 * (i % 2)
        quarter = (slice(None), i, 0, slice(row, row + 2), slice(column, column + 2))
        fills[quarter] = 1 - fills[quarter]
    x = torch.zeros(2, 1, 4, 4)
    climbed = refine(two_valued, x, ALL, fills, rounds=1, crossovers=0, steps=30)
    exchanged = refine(two_valued, x, ALL, fills, rounds=3, crossovers=60, steps=10)
    best = two_valued(torch.where(BRIGHT > 0, 0.9, 0.1)[None])
    of_each = [
        two_valued(found.flatten(0, 1)).reshape(2, 12).amax(1)
        for found in (climbed, exchanged)
    ]
    assert (of_each[0] < best - 40).all()
    # a wrong pixel costs 4, and Metropolis lets one stand
    assert (of_each[1] > best - 6).all()


def test_similar_images_give_patches_and_need_not_be_as_many_as_the_fills():
    right = torch.where(BRIGHT > 0, 0.9, 0.1).expand(2, 1, 1, 4, 4)
    options = dict(similar=right, rounds=1, crossovers=60, steps=0)
    found = refine(two_valued, torch.zeros(2, 1, 4, 4), ALL, 1 - right, **options)
    is_right, is_wrong = ((found - image).abs() < 1e-6 for image in (right, 1 - right))
    assert is_right.float().mean() > 0.8
    assert (is_right | is_wrong).all()


def test_observed_entries_stay_and_what_lies_under_the_hole_changes_nothing():
    x, mask = torch.rand(3, 1, 4, 4), make_masks("noise:0.5", 3, 4, 4)
    fills, similar = torch.rand(3, 5, 1, 4, 4), torch.rand(3, 7, 1, 4, 4)
    expected = refine(two_valued, x, mask, fills, similar)
    hole = mask[:, None]
    assert torch.equal(
        expected[~hole.expand_as(expected)],
        x[:, None].expand_as(fills)[~hole.expand_as(fills)],
    )
    assert ((expected > 0) & (expected < 1)).all()
    for under in (0.0, 0.9, math.nan):
        given = [torch.where(hole, images, under) for images in (fills, similar)]
        found = refine(two_valued, torch.where(mask, under, x), mask, *given)
        assert torch.equal(found, expected)


def test_a_batch_equals_its_examples_one_by_one_and_the_seed_decides():
    x, mask = (
        torch.rand(3, 1, 4, 4, dtype=torch.float64),
        make_masks("noise:0.5", 3, 4, 4),
    )
    fills, seeds = torch.rand(3, 6, 1, 4, 4, dtype=torch.float64), [5, 3, 8]
    together = refine(two_valued, x, mask, fills, seeds=seeds)
    for i in range(3):
        part = slice(i, i + 1)
        alone = refine(two_valued, x[part], mask[part], fills[part], seeds=seeds[part])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)
    assert not torch.equal(
        refine(two_valued, x, mask, fills, seeds=[1, 2, 4]), together
    )


def test_on_the_real_line_the_ascent_reaches_the_mode_of_a_gaussian():
    def gaussian(x):
        return -0.5 * (x - torch.tensor([1.0, -2.0])).square().sum(1)

    mask = torch.tensor([[False, True]])
    found = refine(
        gaussian,
        torch.zeros(1, 2),
        mask,
        torch.zeros(1, 1, 2),
        unit_interval=False,
        steps=200,
    )
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, -2.0]), rtol=0, atol=0.1)


def test_nothing_missing_and_a_density_that_is_not_a_number():
    x, fills = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 1, 4, 4)
    assert torch.equal(refine(two_valued, x, ~ALL, fills), x[:, None].expand_as(fills))
    found = refine(lambda v: math.nan * v.flatten(1).sum(1), x, ALL, fills)
    torch.testing.assert_close(found, fills)


def test_the_model_comes_back_as_it_was():
    flow = realnvp(2, layers=2, hidden=(8,)).train()
    mask = torch.tensor([[True, False]])
    refine(
        flow.log_prob,
        torch.zeros(1, 2),
        mask,
        torch.zeros(1, 3, 2),
        unit_interval=False,
    )
    assert flow.training
    assert all(
        parameter.requires_grad and parameter.grad is None
        for parameter in flow.parameters()
    )


def test_patches_are_boxes_at_missing_entries():
    hole = make_masks("noise:0.3", 2, 28, 28).flatten(1)[:, None]
    streams = Streams([1, 2], "test", torch.zeros(1))
    boxes = random_patches(torch.ones_like(hole), 50, (1, 28, 28), streams).reshape(
        100, 28, 28
    )
    sides = torch.stack([boxes.any(2).sum(1), boxes.any(1).sum(1)])
    assert torch.equal(boxes.sum((1, 2)), sides.prod(0))
    assert sides.max() <= 14
    assert sides.float().mean() > 5
    inside = random_patches(hole, 50, (1, 28, 28), streams)
    assert inside.any(2).all()
    assert not (inside & ~hole).any()


def test_patches_are_small_beside_the_hole():
    hole = torch.zeros(2, 1, 28, 28, dtype=torch.bool)
    hole[0, :, 3:11, 20:28] = True  # 8x8
    hole[1, :, :14] = True  # 14x28
    streams = Streams([1, 2], "test", torch.zeros(1))
    boxes = random_patches(
        hole.flatten(1)[:, None], 200, (1, 28, 28), streams
    ).unflatten(2, (28, 28))
    heights, widths = boxes.any(3).sum(2), boxes.any(2).sum(2)
    assert heights.amax(1).tolist() == [4, 7]
    assert widths.amax(1).tolist() == [4, 14]
    assert boxes.flatten(2).any(2).all()
    assert (
        random_patches(torch.zeros(2, 1, 5, dtype=torch.bool), 3, (5,), streams).sum()
        == 0
    )


def test_one_fill_that_is_a_little_better_does_not_replace_all_others():
    def nearly_flat(v):
        return -0.5 * v.flatten(1).mean(1)

    mask = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    mask[:, :, 4:12, 4:12] = True
    fills = (
        torch.linspace(0.2, 0.8, 12).reshape(1, 12, 1, 1, 1).expand(1, 12, 1, 28, 28)
    )
    found = refine(nearly_flat, torch.zeros(1, 1, 28, 28), mask, fills, steps=0)
    kept = found[0, :, mask[0]].std(0).mean() / fills[0, :, mask[0]].std(0).mean()
    assert kept > 0.3  # 0.02 with boxes of half the image


def test_nearest_images_are_those_of_a_plain_search_over_observed_entries():
    x, references = torch.rand(5, 1, 8, 8), torch.rand(40, 1, 8, 8)
    mask = make_masks("noise:0.5", 5, 8, 8)
    distance = (
        torch.where(mask[:, None], 0, (x[:, None] - references).square())
        .flatten(2)
        .sum(2)
    )
    found = nearest_images(torch.where(mask, torch.nan, x), mask, references, 3)
    assert torch.equal(found, references[distance.argsort(1)[:, :3]])


def test_an_image_without_a_hole_but_for_one_pixel_is_most_similar_to_itself(digits):
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 4, 4] = True
    masked = torch.where(mask, 0, digits.train[:3])
    found = similar_images(masked, mask, digits.train[:100], 2)
    assert found.shape == (3, 2, 1, 8, 8)
    assert torch.equal(torch.where(mask, 0, found[:, 0]), masked)


@pytest.mark.parametrize("k", [1, 5])
def test_there_are_no_more_similar_images_than_references(k, digits):
    mask = make_masks("noise:0.5", 2, 8, 8)
    assert similar_images(digits.train[:2], mask, digits.train[:3], k).shape[1] == min(
        k, 3
    )


def test_an_example_is_done_once_its_patches_gain_little():
    # Two examples, all missing. In the first every patch of the bright fill is worth a
    # lot, in the second all fills are alike, so there is nothing to gain.
    fills = torch.full((2, 4, 1, 4, 4), 0.5)
    fills[0] = torch.tensor([0.1, 0.2, 0.3, 0.9])[:, None, None, None]
    images = []

    def log_prob(v):
        images.append(v[:, 0, 0, 0])
        return 100 * v.flatten(1).sum(1)

    density = HoleDensity(log_prob, torch.zeros(2, 1, 4, 4), ALL)
    y, streams = density.encode(fills), Streams([1, 2], "test", fills)
    options = dict(rounds=5, crossovers=20, steps=1, lr=1e-3)
    rounds = list(refine_fills(density, y, y, streams, **options))
    assert 1 < len(rounds) <= 5
    assert (density.decode(rounds[-1])[0] > 0.8).float().mean() > 0.9
    evaluated = torch.cat(images)
    second = ((evaluated - 0.5).abs() < 0.05).sum()
    # a round of four fills, and patches in vain
    assert second == 4 * (20 + 1 + 1 + 20 + 1)
    assert len(evaluated) - second > 2 * second


def noisy(log_prob, mask, y, width, steps, seeds=(0,)):
    """Fills y (1, C, D) of vectors, after `steps` of noise."""
    density = HoleDensity(log_prob, torch.zeros(1, 2), mask, unit_interval=False)
    streams = Streams(seeds, "test", y)
    return add_noise(density, y, torch.full_like(y, width), streams, steps)


@pytest.mark.parametrize("steps", [0, 2, 6])
def test_noise_has_the_moments_that_the_steps_give_it_under_a_gaussian(steps):
    mean = torch.tensor([0.0, 3.0])
    std = 0.5

    def gaussian(x):
        return -0.5 * ((x - mean) / std).square().sum(1)

    # A step shrinks the distance from the mean and adds noise, of a known variance.
    shrink = 1 - LANGEVIN_STEP**2 / 2
    expected_mean, expected_variance = 3 + shrink**steps, 1.0
    for _ in range(steps):
        expected_variance = shrink**2 * expected_variance + LANGEVIN_STEP**2

    mask = torch.tensor([[False, True]])
    y = torch.tensor([0.0, 4.0]).expand(1, 20_000, 2)
    found = noisy(gaussian, mask, y, std, steps)[0]
    assert found[:, 0].abs().max() == 0  # it was observed
    # The standard errors are 0.004 and 0.005 of the variance, each four times.
    assert found[:, 1].mean().item() == pytest.approx(expected_mean, abs=0.016)
    variance = found[:, 1].var().item() / std**2
    assert variance == pytest.approx(expected_variance, rel=0.045)


def test_steps_take_back_noise_that_leads_off_a_ridge():
    def ridge(x):  # the sum is 0 up to 0.1, the difference is free
        return -0.5 * (x.sum(1) / 0.1).square() - 0.05 * (x[:, 0] - x[:, 1]).square()

    everything = torch.ones(1, 2, dtype=torch.bool)
    y = torch.zeros(1, 4000, 2)
    log_p = []
    for steps in (0, 2, 6):
        found = noisy(ridge, everything, y, 0.1, steps)[0]
        assert found.isfinite().all()
        log_p.append(ridge(found).mean().item())
    assert log_p[0] < log_p[1] < log_p[2]


def test_where_the_density_is_not_a_number_noise_is_all_that_moves():
    def undefined(x):
        return math.nan * x.sum(1)

    y = torch.ones(1, 5, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = noisy(undefined, mask, y, 0.1, 2)
    assert found.isfinite().all()
    assert torch.equal(found, noisy(undefined, mask, y, 0.1, 2))
    assert not torch.equal(found, noisy(undefined, mask, y, 0.1, 2, seeds=[1]))
