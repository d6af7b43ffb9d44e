import pytest
import torch

from flowlib.inpainting.scores import crps, energy_score, hole_mse, hole_psnr, ink_ratio, ranks


def test_scores_are_those_of_all_pairs_and_ranks_are_uniform_for_one_more_draw():
    samples, truth = torch.rand(7, 3, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    mask = torch.rand(3, 5) < 0.6
    mask[:, 0] = True
    pairs = (samples[:, None] - samples[None]).abs()
    expected = (samples - truth).abs().mean(0) - pairs.mean((0, 1)) / 2
    torch.testing.assert_close(crps(samples, truth, mask), (expected * mask).sum(1) / mask.sum(1))
    distances = ((samples[:, None] - samples[None]) * mask).norm(dim=3).mean((0, 1))
    torch.testing.assert_close(energy_score(samples, truth, mask), ((samples - truth) * mask).norm(dim=2).mean(0) - distances / 2)
    draws = torch.randint(3, (20, 4000))  # many ties
    rank = ranks(draws[1:], draws[0], torch.Generator().manual_seed(0))
    assert torch.histc(rank.float(), 10, 0, 1).div(400).sub(1).abs().max() < 0.2  # four standard errors


def test_figures_of_merit_look_at_the_hole_alone():
    truth = torch.full((2, 1, 2, 2), 0.5)
    mask = torch.tensor([[[[True, False], [False, False]]], [[[True, True], [False, False]]]])
    filled = torch.where(mask, truth + 0.1, torch.zeros(()))  # what is not missing must not matter
    torch.testing.assert_close(hole_mse(filled, truth, mask), torch.tensor([0.01, 0.01]))
    assert hole_psnr(filled, truth, mask) == pytest.approx(20, abs=1e-4)
    assert ink_ratio(filled, truth, mask) == pytest.approx(1.2)
