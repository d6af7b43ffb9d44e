import pytest
import torch

from flowlib.files import UserError
from flowlib.inpainting.masks import HALVES, draw_masks, make_masks
from flowlib.rng import rng


def test_square_masks_are_squares_anywhere():
    masks = make_masks("square:3", 400, 8, 10, rng(0, "test"))
    assert masks.shape == (400, 1, 8, 10)
    assert (masks.flatten(1).sum(1) == 9).all()
    assert (masks.any(2).sum(-1) == 3).all()
    assert (masks.any(3).sum(-1) == 3).all()
    assert masks.any(0).all()  # every place is reached


def test_noise_masks_miss_the_exact_share():
    masks = make_masks("noise:0.25", 200, 8, 8, rng(0, "test"))
    assert masks.shape == (200, 1, 8, 8)
    assert (masks.flatten(1).sum(1) == 16).all()
    assert masks.float().mean(0).max() < 0.5
    assert make_masks("noise:1", 1, 8, 8).all()
    assert not make_masks("noise:0", 1, 8, 8).any()


def test_half_masks_and_names():
    top, bottom, left, right = (make_masks(kind, 2, 6, 4) for kind in HALVES)
    assert top[:, :, :3].all()
    assert torch.equal(bottom, ~top)
    assert left[..., :2].all()
    assert torch.equal(right, ~left)
    assert make_masks("square:3", 5, 8, 8).sum() == 45
    assert make_masks("noise:0.25", 1, 8, 8).sum() == 16


def test_masks_follow_their_seed_and_their_kind():
    masks = draw_masks("square:3", 4, (1, 8, 8), 5)
    assert torch.equal(masks, draw_masks("square:3", 4, (1, 8, 8), 5))
    assert not torch.equal(masks, draw_masks("square:3", 4, (1, 8, 8), 6))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: make_masks("square:9", 1, 8, 8), "side"),
        (lambda: make_masks("square:0", 1, 8, 8), "side"),
        (lambda: make_masks("noise:1.5", 1, 8, 8), "fraction"),
        (lambda: make_masks("circle", 1, 8, 8), "square:SIDE"),
        (lambda: make_masks("square:x", 1, 8, 8), "square:x"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize("kind", ["noise:0", "noise:0.001", "square:9", "circle"])
def test_a_kind_that_does_not_fit_or_leaves_no_hole_is_a_users_error(kind):
    with pytest.raises(UserError):
        draw_masks(kind, 2, (1, 8, 8), 0)
