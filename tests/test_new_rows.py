"""Rows that a fitted flow has not seen: scored, and their gaps filled."""

import math

import numpy as np
import pytest
import torch

from flowlib.plots.tables import plot_gaps
from flowlib.tables.mixture import mixture_flow
from flowlib.tables.new_rows import (
    as_table,
    check_fills,
    fill_rows,
    fit_proposal,
    score_rows,
)
from flows2d import realnvp


def test_scores_are_log_p_and_the_share_of_held_out_rows_with_less():
    flow = realnvp(2, layers=2, hidden=(4,))  # starts as the standard normal
    log_p = flow.log_prob(torch.randn(4000, 2)).detach().double()
    shares = torch.linspace(0, 1, 501, dtype=torch.float64)
    flow.metrics = {"held_out_log_p": log_p.quantile(shares).tolist()}
    rows = torch.tensor([[0.0, 0.0], [9.0, 9.0], [2.0, 0.0]])
    scores = score_rows({"flow": flow}, rows)

    assert scores["row"].tolist() == [2, 3, 1]  # the least likely first
    expected = -0.5 * rows[[1, 2, 0]].square().sum(1) - math.log(2 * math.pi)
    assert scores["log_p_flow"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    # The squared distance of a standard normal in the plane is exponential, mean 2.
    exact = [0, math.exp(-2), 1]
    assert scores["less_likely_flow"].tolist() == pytest.approx(exact, abs=0.02)


def correlated(count: int) -> torch.Tensor:
    """Rows whose second column follows the first one, in units far apart."""
    noise = torch.randn(count, 2, dtype=torch.float64)
    x = 1e-3 * noise[:, 0]
    return torch.stack([x, 1e5 * (1e3 * x + 0.5 * noise[:, 1])], 1)


def test_gaps_are_filled_in_the_users_units():
    rows = correlated(5000)
    flow = mixture_flow(rows)
    flow.metrics = {"modes": 1, "added": 1e-9}
    proposal = fit_proposal(flow, rows)
    new = correlated(200)
    holes = new.clone()
    holes[:, 1] = math.nan
    holes[0] = torch.tensor([math.nan, 1.5])
    holes[1] = new[1]
    filled = fill_rows(flow, proposal, holes, seed=0, draws=100)

    observed = ~holes.isnan()
    assert filled.mean[observed].equal(holes[observed])  # bit for bit
    assert filled.samples[1].equal(new[1].repeat(100, 1))
    exact = 1e8 * new[2:, 0]
    error = (filled.mean[2:, 1] - exact) / 5e4
    assert error.abs().max() < 0.5
    spread = filled.samples[2:, :, 1].std(1).mean()
    assert spread.item() == pytest.approx(5e4, rel=0.05)


def test_a_check_hides_cells_and_counts_how_many_the_intervals_hold():
    rows = correlated(2000)
    flow = mixture_flow(rows)
    check = check_fills(flow, flow.base, correlated(500), seed=1)
    assert check["cells"] == pytest.approx(200, abs=60)
    assert check["coverage_90"] == pytest.approx(0.9, abs=3 * check["coverage_90_se"])
    assert 0 < check["coverage_90_se"] < 0.05
    assert 0 < check["crps"] < check["rmse"] < 1


def test_tables_have_the_users_row_numbers():
    mean = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    table = as_table(mean, ["a", "b"], [1, 2])
    assert table.to_dict("list") == {"row": [1, 2], "a": [1, 3], "b": [2, 4]}
    samples = torch.stack([mean, mean + 10], 1)
    table = as_table(samples, ["a", "b"], [3, 7])
    assert list(table) == ["row", "sample", "a", "b"]
    assert table["row"].tolist() == [3, 3, 7, 7]
    assert table["sample"].tolist() == [1, 2, 1, 2]
    assert np.array_equal(table["a"], [1, 11, 3, 13])
    # The user's columns may be called so too.
    table = as_table(samples, ["a", "row"], [3, 7])
    assert list(table) == ["row", "sample", "a", "row"]


def test_the_figure_has_a_line_for_each_of_the_first_gaps():
    gaps = torch.zeros(9, 2, dtype=torch.bool)
    gaps[:, 1] = True
    gaps[:5, 0] = True
    samples = torch.randn(9, 40, 2)
    figure = plot_gaps(samples, gaps, torch.randn(50, 2), ["$a", "b"], samples[:, 0])
    (panel,) = figure.axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels[:3] == [r"row 1, \$a", "row 1, b", r"row 2, \$a"]
    assert len(labels) == 12
    crosses = [line for line in panel.lines if line.get_marker() == "x"]
    assert len(crosses) == 12
