"""A flow of a table: never worse than the mixture that it starts as."""

import json
from functools import partial

import pytest
import torch

from flowlib.tables.fit import evaluate_table, fit_table
from flowlib.tables.mixture import Choice, choose_mixture, mixture_flow
from flowlib.tables.points import MANY, drawing_from, make_table_points
from train_moons import Training, make_start, train_flow

START = make_start("realnvp", 4, 16, 0, 0, torch.device("cpu"))


def curved(count: int) -> torch.Tensor:
    """Rows on a parabola, which no Gaussian describes."""
    x = torch.randn(count, dtype=torch.float64)
    return torch.stack([x, x.square() + 0.1 * torch.randn(count)], 1)


def fit(rows: torch.Tensor, choice: Choice, **training):
    points = make_table_points(rows, 0, "rows")
    settings = Training(batch=64, lr=5e-3, steps_per_epoch=20, **training)
    train = partial(train_flow, held_out=None, training=settings)
    return points, fit_table(
        START, train, points, choice, choice.modes, settings, "flow"
    )


def test_a_flow_gains_over_the_gaussian_where_there_is_something_to_gain():
    gaussian = choose_mixture(make_table_points(curved(800), 0, "rows").folds, (1,))
    points, found = fit(curved(800), gaussian, epochs=4)
    assert found.metrics["steps"] == 20 * found.metrics["epochs"] > 0
    gain = found.metrics["gain_over_mixture"]
    assert gain > 3 * found.metrics["gain_over_mixture_se"] > 0
    # The numbers are those of the flow that comes back.
    again = evaluate_table(found.flow, points, gaussian)
    assert again.items() <= found.metrics.items()
    json.dumps(found.metrics, allow_nan=False)


def test_training_that_does_harm_is_left_out():
    """So many steps on so few rows are learned by heart: the mixture itself is kept."""
    rows = torch.randn(100, 8, dtype=torch.float64)
    choice = choose_mixture(make_table_points(rows, 0, "rows").folds, (1,))
    points, found = fit(rows, choice, epochs=8, patience=2)
    assert found.metrics["steps"] == 0
    assert len(found.history) == 1 + 2  # epoch 0, and as many as the patience
    assert found.metrics["gain_over_mixture"] == pytest.approx(0, abs=1e-5)
    mixture = mixture_flow(points.train, choice.modes, choice.added)
    exact = mixture.log_prob(points.test.double())
    found_log_p = found.flow.log_prob(points.test).double()
    torch.testing.assert_close(found_log_p, exact, rtol=1e-4, atol=1e-4)


def test_a_better_mixture_than_the_one_to_start_with_is_kept():
    rows = torch.randn(300, 2, dtype=torch.float64) + 9 * torch.randint(2, (300, 1))
    points = make_table_points(rows, 0, "rows")
    best = choose_mixture(points.folds)
    training = Training(epochs=1, batch=32, lr=1e-8, steps_per_epoch=1)
    train = partial(train_flow, held_out=None, training=training)
    found = fit_table(START, train, points, best, 1, training, "flow")
    assert best.modes > 1
    assert found.metrics["held_out_nll"] == best.nll
    assert found.metrics["gain_over_mixture"] == pytest.approx(0, abs=1e-5)


def test_held_out_log_p_is_that_of_flows_which_have_not_seen_the_rows():
    rows = torch.randn(200, 2, dtype=torch.float64)
    points = make_table_points(rows, 0, "rows")
    choice = Choice(modes=15, added=1e-4, nll=0.0, gaussian_nll=0.0)
    training = Training(epochs=1, lr=1e-8)
    train = partial(train_flow, held_out=None, training=training)
    flow, _, metrics = fit_table(START, train, points, choice, 15, training, "flow")
    held_out = torch.tensor(metrics["held_out_log_p"])
    # A mixture of 15 modes knows its own 180 rows too well.
    of_train = flow.log_prob(points.train).detach()
    assert held_out.median() < of_train.median() - 0.1
    assert held_out.equal(held_out.sort().values)


@pytest.mark.parametrize("count", [150, MANY + 500])
def test_each_row_is_fitted_or_tested_and_held_out_at_most_once(count):
    rows = torch.arange(2.0 * count).reshape(count, 2).double()
    points = make_table_points(rows + 0.5, 0, "rows")
    assert len(points.test) == count // 10
    everything = torch.cat([points.test, points.train])[:, 0].sort().values
    torch.testing.assert_close(everything.double(), rows[:, 0] + 0.5)
    for fitted, held_out in points.folds:
        both = torch.cat([fitted, held_out])[:, 0].sort().values
        torch.testing.assert_close(both, points.train[:, 0].sort().values)
    held_out = torch.cat([part for _, part in points.folds])
    assert len(held_out.unique(dim=0)) == len(held_out)
    few = count < MANY
    assert len(points.folds) == (5 if few else 1)
    assert len(held_out) == pytest.approx(
        len(points.train) * (1 if few else 0.1), abs=1
    )


def test_noise_is_in_proportion_to_the_columns_spread():
    rows = torch.randn(1000, 2) * torch.tensor([1.0, 1e4])
    draw = drawing_from(rows, torch.Generator().manual_seed(0), added=0.25)
    ratio = draw(200_000).var(0) / rows.var(0)
    assert ratio.tolist() == pytest.approx([1.25, 1.25], rel=0.02)
    draw = drawing_from(rows, torch.Generator().manual_seed(0))
    assert set(draw(500)[:, 0].tolist()) <= set(rows[:, 0].tolist())
