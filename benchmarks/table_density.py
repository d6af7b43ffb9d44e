"""Whose density of a table is closest: a flow's, or what is fitted first?

    python -m benchmarks.table_density

Seven tables: four that come with scikit-learn, and three made ones. Each is split anew
several times; a tenth of the rows is the test. Everybody fits the same rows, and
chooses by the same parts of them: the Gaussian nothing, the mixture its modes and what
is added to their variances, the kernel density its width, zuko's spline flow when to
stop, our flows when to stop, from the mixture on. The settings of our flows were chosen
on diabetes, the made tables and one split of breast cancer.

Needs    zuko, in requirements-dev.txt
Writes   benchmarks/results/table_density.json after each split. Run again with the same
         settings, it goes on where it stopped
Takes    about an hour on one CPU core
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.about import add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, middle, table
from benchmarks.moons_peers import find, load_earlier, require_peers, use_one_core
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import write_json
from flowlib.grids import evaluate
from flowlib.plots.moons import TITLES
from flowlib.points import Points
from flowlib.rng import rng
from flowlib.tables.mixture import choose_mixture, mixture_flow, standardize
from flowlib.tables.points import drawing_from, make_table_points
from train_moons import fit_table_flows
from train_moons import parse_args as parse_script

WIDTHS = np.geomspace(0.05, 1, 14)  # of the kernels, in standard deviations
TRUTH = "truth"
FIRST = ("Gaussian", "mixture", "kernel density")  # what statistics fits first
SPLINES = "zuko NSF"

# ---------------------------------------------------------------- the tables
# Each is seed -> rows (N, D), and their exact log p (N,) if it is known.

Made = tuple[np.ndarray, np.ndarray | None]


def make_waves(seed: int) -> Made:
    """5,000 rows, 4 columns: a waiting time, a wave of it, an income, two groups."""
    random = np.random.default_rng(seed)
    a = random.gamma(2, 2, 5000)
    b = np.sin(a) + random.normal(0, 0.2, 5000)
    c = np.exp(0.5 * b + random.normal(0, 0.25, 5000))
    d = random.choice([-3, 3], 5000) + 0.05 * a + random.normal(0, 0.5, 5000)

    groups = [log_normal(d, center + 0.05 * a, 0.5) for center in (-3, 3)]
    log_p = np.log(a) - a / 2 - math.log(4)
    log_p += log_normal(b, np.sin(a), 0.2)
    log_p += log_normal(np.log(c), 0.5 * b, 0.25) - np.log(c)
    log_p += np.logaddexp(*groups) - math.log(2)
    return np.column_stack([a, b, c, d]), log_p


def make_heavy_tails(seed: int) -> Made:
    """1,000 rows, 6 columns: Student's t with three degrees of freedom."""
    random = np.random.default_rng(seed)
    dim = 6
    freedom = 3
    factor = np.eye(dim) + 0.4 * np.random.default_rng(0).normal(size=(dim, dim))
    scale = np.sqrt(random.chisquare(freedom, (1000, 1)) / freedom)
    rows = random.normal(size=(1000, dim)) / scale @ factor.T

    half = (freedom + dim) / 2
    log_p = math.lgamma(half) - math.lgamma(freedom / 2)
    log_p -= dim / 2 * math.log(freedom * math.pi) + np.linalg.slogdet(factor)[1]
    distance = np.square(np.linalg.solve(factor, rows.T)).sum(0)
    return rows, log_p - half * np.log1p(distance / freedom)


def make_surface(seed: int) -> Made:
    """5,000 rows, 20 columns: sines of two hidden numbers, and a little noise."""
    random = np.random.default_rng(seed)
    fixed = np.random.default_rng(0)
    slope = fixed.normal(size=(2, 20))
    phase = fixed.uniform(0, 2 * math.pi, 20)
    hidden = random.uniform(-2, 2, (5000, 2))
    rows = np.sin(hidden @ slope + phase) + random.normal(0, 0.1, (5000, 20))

    # The hidden numbers are integrated out, by the midpoint rule.
    middles = (np.arange(400) + 0.5) / 100 - 2
    places = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
    surface = np.sin(places @ slope + phase)
    log_p = np.empty(len(rows))
    for i, row in enumerate(rows):
        terms = -0.5 * np.square((row - surface) / 0.1).sum(1)
        top = terms.max()
        log_p[i] = top + math.log(np.exp(terms - top).mean())
    return rows, log_p - 20 * math.log(0.1 * math.sqrt(2 * math.pi))


def log_normal(x: np.ndarray, center: np.ndarray, std: float) -> np.ndarray:
    """log N(x; center, std²) of each entry."""
    return -0.5 * ((x - center) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def load_table(name: str) -> Made:
    """A table of scikit-learn's, its columns of continuous numbers."""
    from sklearn import datasets

    load_one = getattr(datasets, f"load_{name}")
    if name != "diabetes":
        return load_one().data, None
    rows = load_one(scaled=False).data
    return np.delete(rows, 1, axis=1), None  # the second column is the sex


MADE: dict[str, Callable[[int], Made]]
MADE = {"waves": make_waves, "heavy tails": make_heavy_tails, "surface": make_surface}
TABLES = ("iris", "wine", "diabetes", "breast_cancer", *MADE)


def split_table(name: str, seed: int) -> tuple[Points, float | None]:
    """A table's points, a split for each seed, and the truth's NLL of its test rows."""
    rows, log_p = MADE[name](seed) if name in MADE else load_table(name)
    points = make_table_points(torch.from_numpy(rows).double(), seed, name)
    if log_p is None:
        return points, None

    # The test rows are found again by their first column, which has no ties.
    places = torch.from_numpy(rows[:, 0]).to(points.test.dtype).argsort()
    ordered = torch.from_numpy(rows[:, 0]).to(points.test.dtype)[places]
    found = places[torch.searchsorted(ordered, points.test[:, 0].contiguous())]
    return points, -float(log_p[found].mean())


# ---------------------------------------------------------------- the models
# Each is points -> log p of the test rows in nats, (N,).


def fit_kernels(points: Points) -> Tensor:
    """A Gaussian around each row, of the width that cross-validation finds."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    scale = standardize(points.train)
    rows = scale(points.train.double())[0].numpy()
    test, log_det = scale(points.test.double())
    search = GridSearchCV(KernelDensity(), {"bandwidth": WIDTHS}, cv=5)
    density = search.fit(rows).best_estimator_
    return torch.from_numpy(density.score_samples(test.numpy())) + log_det


def fit_spline_flow(points: Points) -> Tensor:
    """zuko's neural spline flow, 3 transforms of 64 x 64; a tenth says when to stop."""
    import zuko

    scale = standardize(points.train)
    rows = scale(points.train.double())[0].float()
    test, log_det = scale(points.test.double())
    held_out, rows = rows.split([len(rows) // 10, len(rows) - len(rows) // 10])
    torch.manual_seed(0)
    flow = zuko.flows.NSF(rows.shape[1], transforms=3, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    draw = drawing_from(rows, rng(0, "spline flow"))

    best = math.inf
    best_log_p = test.new_zeros(len(test))
    since = 0
    while since < 10:
        for _ in range(25):
            loss = -flow().log_prob(draw(256)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 10)
            optimizer.step()
        with torch.no_grad():
            nll = -flow().log_prob(held_out).mean().item()
            since += 1
            if nll < best:
                best = nll
                since = 0
                best_log_p = flow().log_prob(test.float()).double()
    return best_log_p + log_det


def log_p_of(flow, points: Points) -> Tensor:
    """log p of the test rows in nats under a flow, (N,)."""
    return evaluate(flow.log_prob, points.test, flow)


SIMPLE: dict[str, Callable[[Points], Tensor]] = {
    "Gaussian": lambda points: log_p_of(mixture_flow(points.train), points),
    "kernel density": fit_kernels,
    SPLINES: fit_spline_flow,
}

# ---------------------------------------------------------------- measure


def fit_all(points: Points, seed: int) -> Iterator[tuple[str, Tensor, float]]:
    """Of each model its name, log p of the test rows (N,), and the seconds it took."""
    start = time.perf_counter()
    choice = choose_mixture(points.folds)
    mixture = mixture_flow(points.train, choice.modes, choice.added)
    yield "mixture", log_p_of(mixture, points), time.perf_counter() - start

    for name, fit in SIMPLE.items():
        start = time.perf_counter()
        log_p = fit(points)
        yield name, log_p, time.perf_counter() - start

    # Both of our flows, as train_moons.py fits them.
    args = parse_script(["--data", "table.csv", "--seed", str(seed)])
    for name, fit in fit_table_flows(args, points, seed).items():
        yield name, log_p_of(fit.flow, points), fit.metrics["seconds"]


def measure(name: str, seed: int) -> Iterator[dict]:
    """A row for each model on one split of a table: its mean test NLL, in nats."""
    points, truth = split_table(name, seed)
    of_split = {"table": name, "seed": seed, "rows": len(points.train)}
    of_split["columns"] = len(points.columns)
    if truth is not None:
        yield of_split | {"model": TRUTH, "nll": truth, "seconds": None}
    for model, log_p, seconds in fit_all(points, seed):
        nll = -log_p.mean().item()
        yield of_split | {"model": model, "nll": nll, "seconds": seconds}


# ---------------------------------------------------------------- table


def column(rows: list[dict], name: str, model: str, key: str) -> Tensor:
    """A model's scores on the splits of a table, in their order, where it has some."""
    found = sorted(find(rows, table=name, model=model), key=lambda row: row["seed"])
    values = [row[key] for row in found if row[key] is not None]
    return torch.tensor(values, dtype=torch.float64)


def in_words(values: Tensor, digits: int = 2) -> str:
    """Their mean and its standard error."""
    error = values.std() / math.sqrt(len(values))
    mean = round(values.mean().item(), digits) + 0.0  # no -0.00
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def table_density_table() -> str:
    """Seven tables' test NLLs, and our flows' lead over what is fitted first."""
    results = load("table_density")
    rows = results["rows"]
    lines = []
    for name in TABLES:
        first = find(rows, table=name)[0]
        splits = len(column(rows, name, "mixture", "nll"))
        cells = [f"{name}, {first['rows']} x {first['columns']}", str(splits)]
        for model in (TRUTH, *FIRST, SPLINES, *TITLES):
            found = column(rows, name, model, "nll")
            cells.append(f"{found.mean():.2f}" if len(found) else "")
        best = min(
            (column(rows, name, model, "nll") for model in FIRST), key=Tensor.mean
        )
        for model in TITLES:
            cells.append(in_words(best - column(rows, name, model, "nll")))
        lines.append(cells)

    lines.append(["seconds, median", "", ""])
    for model in (*FIRST, SPLINES, *TITLES):
        seconds = middle([row["seconds"] for row in find(rows, model=model)])
        lines[-1].append(f"{seconds:.1f}")
    lines[-1] += ["", ""]
    header = [
        "table, rows to fit",
        "splits",
        TRUTH,
        *FIRST,
        SPLINES,
        "RealNVP",
        "Permutation",
    ]
    header += ["RealNVP ahead by", "Permutation ahead by"]
    return table(header, lines) + measured_on(results["about"])


# ---------------------------------------------------------------- command line


def add_split_flags(parser: Parser, name: str, tables: Sequence[str]) -> None:
    """Adds the flags of a benchmark whose rows are those of splits of tables."""
    add = parser.add_argument
    add("--splits", type=number(int, 2), default=5, help="splits of each table")
    add("--tables", nargs="+", choices=tables, default=tables, help="which tables")
    add("--core", type=number(int, 0), default=0, help="CPU core to run on")
    add_output_flag(parser, name)


def measure_splits(
    args, about: dict, measure: Callable[[str, int], Iterator[dict]], shown: str
) -> None:
    """Measures each split of each table that is not yet in the results file.

    `measure` is (table, seed) -> rows, each with a `model`. Their column `shown` is
    printed.
    """
    rows = load_earlier(args.output, about)["rows"]
    for seed in range(args.splits):
        for name in args.tables:
            if find(rows, table=name, seed=seed):
                continue
            found = list(measure(name, seed))
            rows += found
            write_json(args.output, {"about": about, "rows": rows})
            texts = [f"{row['model']} {row[shown]:.3f}" for row in found]
            print(f"split {seed}  {name:14}", *texts, sep="  ", flush=True)
    print(f"wrote {args.output}")


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_split_flags(parser, "table_density", TABLES)
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    require_peers()
    use_one_core(args.core)
    command = command_of("table_density", *(sys.argv[1:] if argv is None else argv))
    about = provenance(command, torch.device("cpu"))
    about["versions"]["zuko"] = metadata.version("zuko")
    measure_splits(args, about, measure, "nll")


if __name__ == "__main__":
    main()
