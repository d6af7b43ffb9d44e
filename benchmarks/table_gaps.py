"""Whose fills of a table's gaps are closest to what was there?

    python -m benchmarks.table_gaps

Four tables, each split anew several times: 80 % of the rows are fitted, and of the
others 20 % of the cells are hidden at random. Seven methods fill them. Three give a
number a cell, so their CRPS is their absolute error. Four give draws, equally many. All
scores are over the hidden cells, in standard deviations of the rows that were fitted;
the seconds are those of fit and fills together.

Writes   benchmarks/results/table_gaps.json
Takes    about ten minutes on one CPU core, most of it for scikit-learn's draws
"""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from tqdm import tqdm

from benchmarks.about import add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, number, one_line_errors, threads
from flowlib.files import write_json
from flowlib.inpainting.scores import inside, ranks
from flowlib.rng import rng
from flowlib.tables.gaps import fill_gaps
from flowlib.tables.points import fit_gaussian
from flows2d import Flow, MixtureBase

DRAWS = 50
HIDDEN = 0.2
TABLES = ("iris", "wine", "diabetes", "breast_cancer")

# ---------------------------------------------------------------- the tables


def load_table(name: str) -> Tensor:
    """A table's columns of continuous numbers, (N, D), float64."""
    from sklearn import datasets

    points = torch.from_numpy(getattr(datasets, f"load_{name}")().data).double()
    if name == "diabetes":  # its second column is the sex
        points = torch.cat([points[:, :1], points[:, 2:]], dim=1)
    return points


def split_table(points: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to fit, (N, D), rows to fill, (M, D), and which of these cells are hidden.

    Both are in standard deviations of the rows to fit, from their mean.
    """
    order = torch.randperm(len(points), generator=rng(seed, "split"))
    fifth = len(points) // 5
    test, train = points[order].split([fifth, len(points) - fifth])
    mean = train.mean(0)
    std = train.std(0)
    hidden = torch.rand(test.shape, generator=rng(seed, "hidden")) < HIDDEN
    return (train - mean) / std, (test - mean) / std, hidden


# ---------------------------------------------------------------- the methods
# Each is (train (N, D), holes (M, D), seed) -> fills (M, S, D), S = 1 for a number.


def fit_table(points: Tensor, seed: int) -> tuple[Flow, MixtureBase]:
    """A flow of points (N, D), and a mixture that is close to it."""
    from sklearn.mixture import GaussianMixture

    found = []
    for modes in range(1, 6):
        fitted = GaussianMixture(modes, reg_covar=1e-2, random_state=seed)
        fitted.fit(points.numpy())
        found.append((fitted.bic(points.numpy()), fitted))
    best = min(found, key=lambda pair: pair[0])[1]
    parts = (best.means_, best.covariances_, best.weights_)
    mixture = MixtureBase(*(torch.from_numpy(part) for part in parts))
    return Flow([], points.shape[1], mixture), mixture


def ours(train: Tensor, holes: Tensor, seed: int) -> Tensor:
    """The flow's."""
    flow, mixture = fit_table(train, seed)
    return fill_gaps(flow, mixture, holes, seed, draws=DRAWS).samples


def only_mixture(train: Tensor, holes: Tensor, seed: int) -> Tensor:
    """The mixture's that the flow starts from."""
    _, mixture = fit_table(train, seed)
    flow = Flow([], train.shape[1], mixture)
    return fill_gaps(flow, mixture, holes, seed, draws=DRAWS).samples


def gaussian(train: Tensor, holes: Tensor, seed: int) -> Tensor:
    """Draws from the conditional of the Gaussian that fits all rows."""
    fitted = fit_gaussian(train)
    precision = fitted.precision_matrix
    torch.manual_seed(seed)
    fills = holes[:, None].repeat(1, DRAWS, 1)
    for row, fill in zip(holes, fills):
        hole = row.isnan()
        if not hole.any():
            continue
        inner = precision[hole][:, hole]
        away = row[~hole] - fitted.loc[~hole]
        pull = precision[hole][:, ~hole] @ away
        mean = fitted.loc[hole] - torch.linalg.solve(inner, pull)
        given = MultivariateNormal(mean, precision_matrix=inner)
        fill[:, hole] = given.sample((DRAWS,))
    return fills


def column_mean(train: Tensor, holes: Tensor, seed: int) -> Tensor:
    """The mean of the column."""
    return torch.where(holes.isnan(), train.mean(0), holes)[:, None]


def nearest(train: Tensor, holes: Tensor, seed: int) -> Tensor:
    """scikit-learn's KNNImputer."""
    from sklearn.impute import KNNImputer

    imputer = KNNImputer().fit(train.numpy())
    return torch.from_numpy(imputer.transform(holes.numpy()))[:, None]


def iterative(train: Tensor, holes: Tensor, seed: int) -> Tensor:
    """scikit-learn's IterativeImputer."""
    return _iterative(train, holes, seed, draws=1)


def iterative_draws(train: Tensor, holes: Tensor, seed: int) -> Tensor:
    """The same with `sample_posterior`, fitted once and applied DRAWS times."""
    return _iterative(train, holes, seed, draws=DRAWS, sample_posterior=True)


def _iterative(train: Tensor, holes: Tensor, seed: int, draws: int, **more) -> Tensor:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    # Fitted to complete rows alone it would stop after one round, for nothing changes.
    imputer = IterativeImputer(random_state=seed, **more)
    imputer.fit(torch.cat([train, holes]).numpy())
    found = [torch.from_numpy(imputer.transform(holes.numpy())) for _ in range(draws)]
    return torch.stack(found, dim=1)


METHODS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "column mean": column_mean,
    "KNNImputer": nearest,
    "IterativeImputer": iterative,
    "IterativeImputer, draws": iterative_draws,
    "Gaussian": gaussian,
    "mixture": only_mixture,
    "ours": ours,
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
    train, test, hidden = split_table(load_table(name), seed)
    holes = torch.where(hidden, math.nan, test)
    for method, fill in METHODS.items():
        start = time.perf_counter()
        fills = fill(train, holes, seed)
        seconds = time.perf_counter() - start
        row = {"table": name, "method": method, "seed": seed, "seconds": seconds}
        yield row | score(fills, test, hidden, seed)


# ---------------------------------------------------------------- table


def mean_and_error(rows: list[dict], key: str) -> tuple[float, float]:
    """The mean of a column and its standard error; nan where there is nothing."""
    if rows[0][key] is None:
        return math.nan, math.nan
    values = torch.tensor([row[key] for row in rows]).double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def table_gaps_table() -> str:
    """Four tables' hidden cells, filled by seven methods."""
    results = load("table_gaps")
    rows = []
    for name in TABLES:
        for method in METHODS:
            key = (name, method)
            of_this = [r for r in results["rows"] if (r["table"], r["method"]) == key]
            crps = "{:.3f} ± {:.3f}".format(*mean_and_error(of_this, "crps"))
            rmse = "{:.3f} ± {:.3f}".format(*mean_and_error(of_this, "rmse"))
            coverage = "{:.1%} ± {:.1%}".format(*mean_and_error(of_this, "coverage_90"))
            seconds = f"{mean_and_error(of_this, 'seconds')[0]:.2f}"
            coverage = "-" if of_this[0]["coverage_90"] is None else coverage
            rows.append([name, method, crps, rmse, coverage, seconds])

    header = ["table", "method", "CRPS", "RMSE", "90 % interval", "seconds"]
    splits = f"{1 + max(row['seed'] for row in results['rows'])} splits"
    return table(header, rows) + measured_on(results["about"], splits, "1 thread")


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--splits", type=number(int, 2), default=10, help="splits of each table")
    add("--tables", nargs="+", choices=TABLES, default=TABLES, help="which tables")
    add_output_flag(parser, "table_gaps")
    return parser.parse_args(argv)


@one_line_errors()
@threads(1)
def main(argv=None) -> None:
    args = parse_args(argv)
    rows = []
    pairs = [(name, seed) for name in args.tables for seed in range(args.splits)]
    for name, seed in tqdm(pairs, unit="split"):
        rows += measure(name, seed)

    about = provenance(
        command_of("table_gaps", "--splits", args.splits), torch.device("cpu")
    )
    write_json(args.output, {"about": about, "rows": rows})
    for name in args.tables:
        for method in METHODS:
            key = (name, method)
            of_this = [row for row in rows if (row["table"], row["method"]) == key]
            cells = []
            for column in ("crps", "rmse", "coverage_90", "seconds"):
                mean, error = mean_and_error(of_this, column)
                cells.append(f"{column} {mean:.3f} ± {error:.3f}")
            print(f"{name:14}{method:24}", *cells, sep="  ")


if __name__ == "__main__":
    main()
