import pytest
import torch

from flowlib.inpainting.fill import Batch, Fill, Problem, Truth
from flowlib.inpainting.scores import crps, hole_mse, psnr


@pytest.fixture
def truth():
    grey = torch.randint(0, 17, (3, 1, 4, 4)) / 16
    return Truth(grey, grey.clamp(0.01, 0.99), torch.tensor([1.0, 2.0, 3.0]))


@pytest.fixture
def fill(truth):
    """Fills of three images with 17 levels: the MAP is the truth, the others vary."""
    mask = torch.rand(3, 1, 4, 4) < 0.5
    mask[:, :, 0, 0] = True
    levels = (truth.grey * 16).round().to(torch.uint8)
    masked = torch.where(mask, 0, levels)
    v = torch.rand(3, 5, 1, 4, 4)
    plausible = torch.where(
        mask[:, None], (v * 17).floor().to(torch.uint8), masked[:, None]
    )
    return Fill(
        problem=Problem(masked, mask, [0, 1, 2], truth),
        levels=17,
        map=levels,
        map_log_prob=truth.log_prob + torch.tensor([1.0, -1.0, 1.0]),
        typical=torch.tensor([0.0, -1.0, 1.0]),
        plausible=plausible,
        plausible_v=v,
        log_prob=torch.rand(3, 5),
        digits=torch.tensor([[4, 9, 4, 4, 1], [7, 7, 7, 7, 7], [2, 1, 1, 2, 2]]),
    )


def test_mean_and_interval_are_those_of_the_fills_in_grey_values(fill):
    grey = fill.plausible / 16
    torch.testing.assert_close(fill.mean(), grey.mean(1))
    seen = ~fill.problem.mask
    assert torch.equal(fill.mean()[seen], fill.problem.masked[seen] / 16)
    low, high = fill.interval(0.9)
    torch.testing.assert_close(low, grey.quantile(0.05, dim=1))
    torch.testing.assert_close(high, grey.quantile(0.95, dim=1))


def test_the_medoid_is_the_fill_that_is_nearest_to_the_others(fill):
    grey = (fill.plausible / 16).flatten(2)
    apart = (grey[:, :, None] - grey[:, None]).square().sum((2, 3))  # (B, C)
    assert fill.medoid().tolist() == apart.argmin(1).tolist()
    assert len(set(fill.medoid().tolist())) > 1
    # Of fills that are alike but for one, it is not that one.
    fill.plausible[:] = fill.plausible[:, :1]
    fill.plausible[:, 3] = 16 - fill.plausible[:, 3]
    assert 3 not in fill.medoid().tolist()


def test_the_metrics_are_those_of_the_scores(fill, truth):
    metrics = fill.compare(truth)
    assert metrics["images"] == 3
    assert metrics["map"]["hole_psnr"] == pytest.approx(120)
    assert metrics["map"]["likelier_than_truth"] == pytest.approx(2 / 3)
    mask = fill.problem.mask
    expected = psnr(hole_mse(fill.mean(), truth.grey, mask).mean().item())
    assert metrics["mean"]["hole_psnr"] == pytest.approx(expected)
    medoids = fill.plausible[range(3), fill.medoid()] / 16
    expected = psnr(hole_mse(medoids, truth.grey, mask).mean().item())
    assert metrics["medoid"]["hole_psnr"] == pytest.approx(expected)
    score = crps(fill.plausible / 16, truth.grey, mask).mean().item()
    assert metrics["crps"] == pytest.approx(score)
    assert metrics["map"]["ink_ratio"] == pytest.approx(1)
    assert fill.numbers(0)["map_log_prob"] == 2
    assert len(fill.numbers(1)["log_prob"]) == 5


def test_a_batch_can_be_taken_apart_and_put_together(fill, truth):
    again = Fill.cat([fill[[0]], fill[[1, 2]]])
    assert len(again) == 3
    for one, other in ((fill, again), (fill.problem, again.problem)):
        for name, value in vars(one).items():
            found = getattr(other, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(found, value), name
            elif not isinstance(value, Batch):
                assert found == value, name
    assert torch.equal(fill[[2]].problem.truth.grey, truth.grey[2:])
    assert fill[[2]].problem.seeds == [2]
    assert fill[[2]].problem.observed is None


def test_the_digits_are_said_in_words(fill):
    assert fill.describe_digits(0) == "4: 3 of 5, 1: 1"
    assert fill.describe_digits(1) == "7: 5 of 5"
    assert fill.describe_digits(2) == "2: 3 of 5, 1: 2"
    fill.digits = None
    assert fill.describe_digits(0) == ""
