import pytest
import torch

from flowlib.inpainting.scores import crps, hole_mse, ink_ratio, psnr, ranks
from flowlib.rng import rng


def test_scores_are_those_of_all_pairs():
    samples, truth = (
        torch.rand(3, 7, 5, dtype=torch.float64),
        torch.rand(3, 5, dtype=torch.float64),
    )
    mask = torch.rand(3, 5) < 0.6
    mask[:, 0] = True
    pairs = (samples[:, :, None] - samples[:, None]).abs().mean((1, 2))
    expected = (samples - truth[:, None]).abs().mean(1) - pairs / 2
    torch.testing.assert_close(
        crps(samples, truth, mask), (expected * mask).sum(1) / mask.sum(1)
    )


def test_ranks_are_uniform_for_one_more_draw():
    draws = torch.randint(3, (4000, 20))  # many ties
    rank = ranks(draws[:, 1:], draws[:, 0], rng(0, "test"))
    assert (
        torch.histc(rank.float(), 10, 0, 1).div(400).sub(1).abs().max() < 0.2
    )  # 4 standard errors


def test_scores_look_at_the_hole_alone():
    truth = torch.full((2, 1, 2, 2), 0.5)
    mask = torch.tensor(
        [[[[True, False], [False, False]]], [[[True, True], [False, False]]]]
    )
    # what is not missing must not matter
    filled = torch.where(mask, truth + 0.1, torch.zeros(()))
    torch.testing.assert_close(
        hole_mse(filled, truth, mask), torch.tensor([0.01, 0.01])
    )
    assert psnr(hole_mse(filled, truth, mask).mean().item()) == pytest.approx(
        20, abs=1e-4
    )
    assert ink_ratio(filled, truth, mask) == pytest.approx(1.2)
