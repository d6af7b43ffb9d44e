"""Whose fills of a table's gaps are closest to what was there?

    python -m benchmarks.table_gaps

Four tables, each split anew five times: nine tenths of the rows are fitted, and of the
others 20 % of the cells are hidden at random. Seven methods fill them. Three give a
number a cell, so their CRPS is their absolute error. Four give draws, equally many. All
scores are over the hidden cells, in standard deviations of the rows that were fitted;
the seconds are those of fit and fills together.

Writes   benchmarks/results/table_gaps.json after each split. Run again with the same
         settings, it goes on where it stopped
Takes    about half an hour on one CPU core
"""

import math
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.about import command_of, provenance
from benchmarks.markdown import load, measured_on, table
from benchmarks.moons_peers import use_one_core
from benchmarks.table_density import (
    add_split_flags,
    column,
    in_words,
    measure_splits,
    split_table,
)
from flowlib.cli import Parser, one_line_errors
from flowlib.inpainting.scores import inside, ranks
from flowlib.points import Points
from flowlib.rng import rng
from flowlib.tables.mixture import choose_mixture, mixture_flow
from flowlib.tables.new_rows import fill_rows, fit_proposal
from train_moons import fit_table_flows
from train_moons import parse_args as parse_script

DRAWS = 50
HIDDEN = 0.2
TABLES = ("iris", "wine", "diabetes", "breast_cancer")
OURS = "ours"

# ---------------------------------------------------------------- the methods
# Each is (points, holes (M, D), seed) -> fills (M, S, D), S = 1 for a number.


def ours(points: Points, holes: Tensor, seed: int) -> Tensor:
    """Those of our flow with the lower held-out NLL, as train_moons.py fills gaps."""
    args = parse_script(["--data", "table.csv", "--seed", str(seed)])
    fits = fit_table_flows(args, points, seed)
    best = min(fits.values(), key=lambda fit: fit.metrics["held_out_nll"]).flow
    proposal = fit_proposal(best, points.train)
    return fill_rows(best, proposal, holes, seed, DRAWS).samples


def only_mixture(points: Points, holes: Tensor, seed: int) -> Tensor:
    """Draws from the conditional of the mixture that our flows start as."""
    choice = choose_mixture(points.folds)
    flow = mixture_flow(points.train, choice.modes, choice.added)
    return fill_rows(flow, flow.base, holes, seed, DRAWS).samples


def gaussian(points: Points, holes: Tensor, seed: int) -> Tensor:
    """Draws from the conditional of the Gaussian that fits all rows."""
    flow = mixture_flow(points.train)
    return fill_rows(flow, flow.base, holes, seed, DRAWS).samples


def column_mean(points: Points, holes: Tensor, seed: int) -> Tensor:
    """The mean of the column."""
    return torch.where(holes.isnan(), points.train.double().mean(0), holes)[:, None]


def nearest(points: Points, holes: Tensor, seed: int) -> Tensor:
    """scikit-learn's KNNImputer, in standardized columns as its distances need."""
    from sklearn.impute import KNNImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    imputer = make_pipeline(scaler, KNNImputer()).fit(points.train.double().numpy())
    filled = scaler.inverse_transform(imputer.transform(holes.numpy()))
    return torch.from_numpy(filled)[:, None]


def iterative(points: Points, holes: Tensor, seed: int) -> Tensor:
    """scikit-learn's IterativeImputer."""
    return _iterative(points, holes, seed, draws=1)


def iterative_draws(points: Points, holes: Tensor, seed: int) -> Tensor:
    """The same with `sample_posterior`, fitted once and applied DRAWS times."""
    return _iterative(points, holes, seed, draws=DRAWS, sample_posterior=True)


def _iterative(points: Points, holes: Tensor, seed: int, draws: int, **more) -> Tensor:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    # Fitted to complete rows alone it would stop after one round, for nothing changes.
    imputer = IterativeImputer(random_state=seed, **more)
    imputer.fit(torch.cat([points.train.double(), holes]).numpy())
    found = [torch.from_numpy(imputer.transform(holes.numpy())) for _ in range(draws)]
    return torch.stack(found, dim=1)


METHODS = {
    "column mean": column_mean,
    "KNNImputer": nearest,
    "IterativeImputer": iterative,
    "IterativeImputer, draws": iterative_draws,
    "Gaussian": gaussian,
    "mixture": only_mixture,
    OURS: ours,
}

# ---------------------------------------------------------------- measure


def fair_crps(samples: Tensor, truth: Tensor) -> Tensor:
    """E|X - truth| - E|X - X'| / 2 with different samples X, X': (n, S), (n,) -> (n,).

    So its expectation does not depend on S. Of one sample it is the absolute error.
    Source: Ferro (2014), doi:10.1002/qj.2270.
    """
    count = samples.shape[1]
    error = (samples - truth[:, None]).abs().mean(1)
    if count == 1:
        return error
    # Sorted, the k-th of S samples enters the sum over all pairs 2 k - S - 1 times.
    factors = 2 * torch.arange(1, count + 1, dtype=samples.dtype) - count - 1
    pairs = samples.sort(1).values @ factors
    return error - pairs / (count * (count - 1))


def score(fills: Tensor, truth: Tensor, hidden: Tensor, seed: int) -> dict:
    """The scores of fills (M, S, D) over the hidden cells of truth (M, D)."""
    samples = fills.transpose(1, 2)[hidden]  # (cells, S)
    cells = truth[hidden]
    error = samples.mean(1) - cells
    row = {
        "rmse": error.square().mean().sqrt().item(),
        "crps": fair_crps(samples, cells).mean().item(),
        "coverage_90": None,
    }
    if samples.shape[1] > 1:
        covered = inside(ranks(samples, cells, rng(seed, "ties")), 0.9)
        row["coverage_90"] = covered.double().mean().item()
    return row


def measure(name: str, seed: int) -> Iterator[dict]:
    """A row for each method on one split of a table."""
    points, _ = split_table(name, seed)
    truth = points.test.double()
    std = points.train.double().std(0)
    hidden = torch.rand(truth.shape, generator=rng(seed, "hidden")) < HIDDEN
    holes = torch.where(hidden, math.nan, truth)
    for method, fill in METHODS.items():
        start = time.perf_counter()
        fills = fill(points, holes, seed)
        seconds = time.perf_counter() - start
        row = {"table": name, "model": method, "seed": seed, "seconds": seconds}
        yield row | score(fills / std, truth / std, hidden, seed)


# ---------------------------------------------------------------- table


def table_gaps_table() -> str:
    """Four tables' hidden cells, filled by seven methods."""
    results = load("table_gaps")
    rows = results["rows"]
    lines = []
    for name in TABLES:
        our_crps = column(rows, name, OURS, "crps")
        for method in METHODS:
            crps = column(rows, name, method, "crps")
            coverage = column(rows, name, method, "coverage_90")
            behind = in_words(crps - our_crps, 3) if method != OURS else ""
            cells = [name, method, f"{crps.mean():.3f}", behind]
            cells.append(f"{column(rows, name, method, 'rmse').mean():.3f}")
            cells.append(f"{coverage.mean():.0%}" if len(coverage) else "")
            cells.append(f"{column(rows, name, method, 'seconds').median():.2f}")
            lines.append(cells)

    header = ["table", "method", "CRPS", "more than ours, paired", "RMSE"]
    header += ["90 % intervals hold", "seconds"]
    splits = f"{1 + max(row['seed'] for row in rows)} splits"
    return table(header, lines) + measured_on(results["about"], splits)


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_split_flags(parser, "table_gaps", TABLES)
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    use_one_core(args.core)
    command = command_of("table_gaps", *(sys.argv[1:] if argv is None else argv))
    about = provenance(command, torch.device("cpu"))
    measure_splits(args, about, measure, "crps")


if __name__ == "__main__":
    main()
