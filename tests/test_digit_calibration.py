"""The scores of digits: by their definitions, and where the right answer is known."""

import math

import pytest
import torch

from benchmarks.digit_calibration import (
    KINDS,
    METHODS,
    plot_reliability,
    probabilities,
    reliability,
    score,
)


def test_votes_become_probabilities_of_which_none_is_zero():
    p = probabilities(torch.tensor([[4, 4, 9], [0, 0, 0]]))
    torch.testing.assert_close(p.sum(1), torch.ones(2))
    assert p[0, 4].item() == pytest.approx(2.1 / 4)
    assert p[0, 9].item() == pytest.approx(1.1 / 4)
    assert p.min().item() == pytest.approx(0.1 / 4)


def test_scores_are_those_of_the_definitions():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    label = torch.tensor([0, 2])
    other = torch.full((2, 3), 1 / 3)
    found = score(p, label, other)
    assert found["log_loss"] == pytest.approx((math.log(2) + math.log(10)) / 2)
    # Of two numbers a and b the standard error is |a - b| / 2.
    assert found["log_loss_error"] == pytest.approx((math.log(10) - math.log(2)) / 2)
    assert found["gain"] == pytest.approx(math.log(3) - found["log_loss"])
    assert found["gain_error"] == pytest.approx(found["log_loss_error"])
    assert score(other, label, other)["gain_error"] == 0
    assert found["brier"] == pytest.approx((0.25 + 2 * 0.0625 + 0.01 + 0.64 + 0.81) / 2)
    assert found["accuracy"] == 0.5


def test_what_is_calibrated_is_on_the_diagonal_and_what_is_too_sure_is_not():
    p = torch.distributions.Dirichlet(torch.full((4,), 0.5)).sample((20_000,)).double()
    label = torch.distributions.Categorical(p).sample()
    rows = reliability(p, label)
    assert sum(row["count"] for row in rows) == 80_000
    assert all(row["said"] == pytest.approx(row["right"], abs=0.03) for row in rows)

    sure = p.pow(3) / p.pow(3).sum(1, keepdim=True)
    highest = reliability(sure, label)[-1]
    assert highest["right"] < highest["said"] - 0.1


def test_a_panel_has_a_curve_for_each_method():
    points = [{"count": 9, "said": 0.5, "right": 0.4, "error": 0.1}]
    rows = []
    for kind in KINDS:
        for name in METHODS.values():
            row = {"mask": kind, "method": name, "log_loss": 1.0}
            rows.append(row | {"reliability": points})
    figure = plot_reliability(rows)
    assert [len(panel.containers) for panel in figure.axes] == [3, 3, 3]
