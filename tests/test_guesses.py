import math

import pytest
import torch

from flowlib.inpainting.density import Streams
from flowlib.inpainting.initial_fills import improve_guesses, random_boxes
from flowlib.inpainting.masks import noise_masks
from flows2d import realnvp

BRIGHT = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])[None]


def two_valued(v):
    """Every pixel of (N, 1, 4, 4) is dark or bright, rather as in BRIGHT, with a barrier in between that no ascent passes."""
    distance = torch.stack([(v - 0.1).square(), (v - 0.9).square()])
    preference = torch.stack([-4.0 * BRIGHT, -4.0 * (1 - BRIGHT)])[:, None]
    return (preference - 200 * distance).logsumexp(0).flatten(1).sum(1)


def test_exchanges_find_what_ascents_alone_do_not():
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    guesses = torch.where(BRIGHT * torch.ones(12, 2, 1, 1, 1) > 0, 0.15, 0.85)
    for i in range(12):  # each is right in one quarter
        row, column = 2 * (i % 4 // 2), 2 * (i % 2)
        guesses[i, :, :, row : row + 2, column : column + 2] = 1 - guesses[i, :, :, row : row + 2, column : column + 2]
    x = torch.zeros(2, 1, 4, 4)
    climbed = improve_guesses(two_valued, x, mask, guesses, rounds=1, exchanges=0, ascent=30)
    exchanged = improve_guesses(two_valued, x, mask, guesses, rounds=3, exchanges=60, ascent=10)
    best = two_valued(torch.where(BRIGHT > 0, 0.9, 0.1)[None])
    of_each = [two_valued(found.flatten(0, 1)).reshape(12, 2).amax(0) for found in (climbed, exchanged)]
    assert (of_each[0] < best - 40).all()
    assert (of_each[1] > best - 6).all()  # a wrong pixel costs 4, and Metropolis lets one stand


def test_donors_give_parts_and_need_not_be_as_many_as_the_guesses():
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    right = torch.where(BRIGHT > 0, 0.9, 0.1).expand(1, 2, 1, 4, 4)
    found = improve_guesses(two_valued, torch.zeros(2, 1, 4, 4), mask, 1 - right, donors=right, rounds=1, exchanges=60, ascent=0)
    assert (found == right).float().mean() > 0.8
    assert ((found == right) | (found == 1 - right)).all()


def test_known_entries_stay_and_what_lies_under_the_hole_changes_nothing():
    x, mask, guesses = torch.rand(3, 1, 4, 4), noise_masks(3, 4, 4, 0.5), torch.rand(5, 3, 1, 4, 4)
    donors = torch.rand(7, 3, 1, 4, 4)
    expected = improve_guesses(two_valued, x, mask, guesses, donors=donors)
    assert torch.equal(expected[:, ~mask], x[~mask].expand(5, -1))
    assert ((expected > 0) & (expected < 1)).all()
    for under in (0.0, 0.9, math.nan):
        completed = [torch.where(mask, rough, under) for rough in (guesses, donors)]
        found = improve_guesses(two_valued, torch.where(mask, under, x), mask, completed[0], donors=completed[1])
        assert torch.equal(found, expected)


def test_a_batch_equals_its_examples_one_by_one_and_the_seed_decides():
    x, mask = torch.rand(3, 1, 4, 4, dtype=torch.float64), noise_masks(3, 4, 4, 0.5)
    guesses, seeds = torch.rand(6, 3, 1, 4, 4, dtype=torch.float64), [5, 3, 8]
    together = improve_guesses(two_valued, x, mask, guesses, seeds=seeds)
    for i in range(3):
        part = slice(i, i + 1)
        alone = improve_guesses(two_valued, x[part], mask[part], guesses[:, part], seeds=seeds[part])
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=0, atol=1e-9)
    assert not torch.equal(improve_guesses(two_valued, x, mask, guesses, seeds=[1, 2, 4]), together)


def test_each_guess_may_know_the_rest_in_its_own_way():
    x, mask = torch.rand(4, 2, 1, 4, 4), noise_masks(2, 4, 4, 0.5)
    found = improve_guesses(two_valued, x, mask, torch.rand(4, 2, 1, 4, 4))
    assert torch.equal(found[:, ~mask], x[:, ~mask])


def test_on_the_real_line_the_ascent_reaches_the_mode_of_a_gaussian():
    def density(x):
        return -0.5 * (x - torch.tensor([1.0, -2.0])).square().sum(1)

    found = improve_guesses(
        density, torch.zeros(1, 2), torch.tensor([[False, True]]), torch.zeros(1, 1, 2), ascent=200, unit_interval=False
    )
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, -2.0]), rtol=0, atol=0.1)


def test_nothing_missing_and_a_density_that_is_not_a_number():
    x, guesses = torch.rand(2, 1, 4, 4), torch.rand(3, 2, 1, 4, 4)
    assert torch.equal(improve_guesses(two_valued, x, torch.zeros_like(x, dtype=torch.bool), guesses), x.expand(3, -1, -1, -1, -1))
    found = improve_guesses(lambda v: math.nan * v.flatten(1).sum(1), x, torch.ones_like(x, dtype=torch.bool), guesses)
    torch.testing.assert_close(found, guesses)


def test_the_model_comes_back_as_it_was():
    flow = realnvp(2, layers=2, hidden=(8,)).train()
    improve_guesses(flow.log_prob, torch.zeros(1, 2), torch.tensor([[True, False]]), torch.zeros(3, 1, 2), unit_interval=False)
    assert flow.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in flow.parameters())


def test_boxes_are_boxes_at_missing_entries():
    hole = noise_masks(2, 28, 28, 0.3).flatten(1)[:, None].expand(-1, 50, -1)
    streams = Streams([1, 2], 2, torch.zeros(1))
    boxes = random_boxes(streams, torch.arange(2), torch.ones_like(hole), (1, 28, 28)).reshape(100, 28, 28)
    sides = torch.stack([boxes.any(2).sum(1), boxes.any(1).sum(1)])
    assert torch.equal(boxes.sum((1, 2)), sides.prod(0))
    assert sides.max() <= 14
    assert sides.float().mean() > 5
    inside = random_boxes(streams, torch.arange(2), hole, (1, 28, 28))
    assert inside.any(2).all()
    assert not (inside & ~hole).any()


def test_boxes_are_small_beside_the_hole():
    hole = torch.zeros(2, 1, 28, 28, dtype=torch.bool)
    hole[0, :, 3:11, 20:28] = True  # 8x8
    hole[1, :, :14] = True  # 14x28
    hole = hole.flatten(1)[:, None].expand(-1, 200, -1)
    boxes = random_boxes(Streams([1, 2], 2, torch.zeros(1)), torch.arange(2), hole, (1, 28, 28)).unflatten(2, (28, 28))
    heights, widths = boxes.any(3).sum(2), boxes.any(2).sum(2)
    assert heights.amax(1).tolist() == [4, 7]
    assert widths.amax(1).tolist() == [4, 14]
    assert boxes.flatten(2).any(2).all()
    assert random_boxes(Streams([0], 1, torch.zeros(1)), torch.arange(1), torch.zeros(1, 3, 5, dtype=torch.bool), (5,)).sum() == 0


def test_one_guess_that_is_a_little_better_does_not_replace_all_others():
    def nearly_flat(v):
        return -0.5 * v.flatten(1).mean(1)

    mask = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    mask[:, :, 4:12, 4:12] = True
    guesses = torch.linspace(0.2, 0.8, 12).reshape(12, 1, 1, 1, 1).expand(12, *mask.shape)
    found = improve_guesses(nearly_flat, torch.zeros(1, 1, 28, 28), mask, guesses, ascent=0)
    kept = found[:, mask].std(0).mean() / guesses[:, mask].std(0).mean()
    assert kept > 0.3  # 0.02 with boxes of half the image


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(mask=torch.ones(2, 1, 4, 4)), "mask"),
        (dict(x=torch.rand(3, 1, 4, 4)), "x"),
        (dict(guesses=torch.rand(0, 2, 1, 4, 4)), "guesses"),
        (dict(donors=torch.rand(5, 1, 4, 4)), "donors"),
        (dict(rounds=-1), "rounds"),
        (dict(lr=0), "lr"),
        (dict(chunk=0), "chunk"),
        (dict(seeds=[1]), "seeds"),
    ],
)
def test_bad_arguments_are_named(change, named):
    good = dict(x=torch.rand(2, 1, 4, 4), mask=torch.ones(2, 1, 4, 4, dtype=torch.bool), guesses=torch.rand(3, 2, 1, 4, 4))
    with pytest.raises(ValueError, match=named):
        improve_guesses(two_valued, **(good | change))
