"""Fits two normalizing flows to two moons and draws what they learned.

    python train_moons.py

trains a RealNVP (alternating masks, invertible linear layers between the couplings) and
a permutation flow (one mask, fixed random permutations between them) by maximum
likelihood: it minimizes -log p(x) = -(log p(z) + Σ log|det J|), z = f(x). The couplings
are splines. The density of the moons is known exactly, so the printed KL divergences
are absolute: 0 is perfect.

    python train_moons.py --data spirals      other shapes: spirals, checkerboard
    python train_moons.py --modes 2           a base of two Gaussians: no bridge
    python train_moons.py --bins 0 --layers 20 --lr 0.02      affine couplings
    python train_moons.py --seeds 3           mean and spread; figures of the first seed
    python train_moons.py --data table.csv    a table (.csv, .npy), up to 64 columns
    python train_moons.py --data table.csv --score new.csv    log p of other rows
    python train_moons.py --data table.csv --fill gaps.csv    what gaps may hold

A flow of a table starts as the mixture of Gaussians that cross-validation chooses, and
is trained as long as held-out rows become likelier. It prints what that gained.

Writes   figures/loss_plot.png              negative log-likelihood over epochs
         figures/density_contours.png       densities and samples
         figures/moons.gif                  noise becomes moons
         checkpoints/moons_realnvp.pt, checkpoints/moons_permutation.pt
         (of other data, --noise and --modes the names start with theirs; tables have
         pairs.png unless they have two columns; --score and --fill write to figures/)
Takes    about 35 seconds on one CPU core; ends at KL(truth || flow) = 0.0010 nats
         for both, medians of three seeds, with --modes 2 at 0.0009 (RealNVP) and 0.0006
         (permutation flow); a table takes one to four minutes
"""

import math
import time
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowlib import files
from flowlib.cli import Parser, number, one_line_errors, threads
from flowlib.files import CHECKPOINTS, UserError
from flowlib.grids import evaluate, kl_divergences
from flowlib.muon import Muon, hidden_matrices
from flowlib.points import NOISE, Points, make_shape
from flowlib.tables.fit import Fit, Training, fit_table
from flowlib.tables.mixture import MODES, choose_mixture, start_flow
from flowlib.tables.new_rows import fill_file, score_file
from flowlib.tables.points import make_file_points
from flowlib.tables.reader import Format
from flowlib.toy2d import SHAPES
from flows2d import Flow, InvertibleLinear, permutation_flow, realnvp

ARCHITECTURES: dict[str, Callable[..., Flow]]
ARCHITECTURES = {"realnvp": realnvp, "permutation": permutation_flow}
# Couplings, the width of their networks, the bins of their splines (0: affine).
SIZES = {"layers": 4, "hidden": 64, "bins": 8}
TABLE_SIZES = {"layers": 8, "hidden": 32, "bins": 0}
# The largest gradient norm, and the linear layers' share of the learning rate. Each of
# them moves everything: clipped at 1, or at a tenth of the rate, they slow the others.
CLIP = 10.0
LINEAR_SHARE = 0.01
# Muon moves the couplings' hidden matrices. Without it flows on one Gaussian keep a
# thicker bridge between the moons. It has this share of the rate, and keeps this share
# of its moving mean in a step.
MUON_SHARE = 0.1
MOMENTUM = 0.98
KL = {"kl_truth_flow": "KL(truth || flow)", "kl_flow_truth": "KL(flow || truth)"}

# Few rows, cross-validated: a slow way from the best mixture. Many: a mixture of few
# modes is enough to start, and what the couplings learn generalizes better.
OF_TABLES = Training(base_share=1.0, decay=1.0, muon=False)
FEW_ROWS = replace(OF_TABLES, epochs=60, steps_per_epoch=50, batch=256, lr=3e-4)
MANY_ROWS = replace(OF_TABLES, epochs=20, steps_per_epoch=100, lr=3e-3, patience=20)
FIRST_MODES = 5  # the most to start with where rows are many


class Step(NamedTuple):
    """A training step and its loss; an epoch's last one also has the NLLs. In nats."""

    step: int
    epoch: int
    loss: float
    train_nll: float | None = None  # the mean loss of the epoch
    held_out_nll: float | None = None


# ---------------------------------------------------------------- train


def load_points(args, seed: int) -> Points:
    """The points that --data names: a shape's, or those of a file."""
    if args.data in SHAPES:
        return make_shape(args.data, args.noise or NOISE, seed)
    return make_file_points(Path(args.data), args.columns, seed, table_format(args))


def table_format(args) -> Format:
    """How the flags say that a table is written."""
    return Format(args.separator, args.decimal, args.thousands, args.header)


def build_flow(
    name: str,
    points: Points,
    layers: int,
    hidden: int,
    bins: int,
    modes: int,
    seed: int,
) -> Flow:
    """An untrained flow that standardizes a shape; the seed decides its weights."""
    torch.manual_seed(seed)  # the first weights and the permutations
    sample = points.draw(10_000)
    mean, std = sample.mean(0), sample.std(0)
    build = ARCHITECTURES[name]
    return build(2, layers, (hidden, hidden), mean, std, modes, bins=bins)


def make_start(
    name: str, layers: int, hidden: int, bins: int, seed: int, device: torch.device
) -> Callable[[Tensor, int, float], Flow]:
    """A function: a table's rows (N, D), modes, added -> a flow that is their mixture.

    The seed decides the flow's first weights.
    """

    def build(dim: int) -> Flow:
        return ARCHITECTURES[name](dim, layers, (hidden, hidden), bins=bins)

    def start(rows: Tensor, modes: int, added: float) -> Flow:
        torch.manual_seed(seed)
        try:
            return start_flow(build, rows, modes, added).to(device)
        except ValueError as error:
            raise UserError(f"the {name} flow: {error}") from None

    return start


def make_optimizers(
    model: nn.Module, linear: nn.Module, base: nn.Module, training: Training
) -> list[torch.optim.Optimizer]:
    """AdamW; where `training` asks for it, Muon for the couplings' hidden matrices.

    What AdamW moves of the couplings decays (Loshchilov and Hutter 2019,
    arXiv:1711.05101). `linear` holds the model's linear layers. They learn at
    LINEAR_SHARE of the rate, the base at `training.base_share` of it.
    """
    hidden = hidden_matrices(model) if training.muon else []
    apart = {*hidden, *linear.parameters(), *base.parameters()}
    couplings = [p for p in model.parameters() if p not in apart]

    groups: list[dict[str, Any]] = [
        {"params": couplings, "weight_decay": training.decay},
        {"params": list(base.parameters()), "lr": training.base_share * training.lr},
        {"params": list(linear.parameters()), "lr": LINEAR_SHARE * training.lr},
    ]
    adam = torch.optim.AdamW(
        groups, lr=training.lr, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    if not hidden:
        return [adam]
    return [adam, Muon(hidden, MUON_SHARE * training.lr, MOMENTUM)]


def train_flow(
    flow: Flow,
    draw: Callable[[int], Tensor],
    held_out: Tensor | None,
    training: Training,
) -> Iterator[Step]:
    """Fits the flow by maximum likelihood; yields a `Step` each step.

    The gradient norm is clipped at CLIP; the learning rates rise for 2 % of the steps,
    then fall along a cosine to zero. The held-out points are only looked at: the flow
    keeps the last weights. Raises UserError if the loss stops being a number.
    """
    steps = training.epochs * training.steps_per_epoch

    def share(i: int) -> float:
        return min(1, 50 * (i + 1) / steps) * cosine(i / steps)

    layers = flow.transforms
    linear = nn.ModuleList(one for one in layers if isinstance(one, InvertibleLinear))
    optimizers = make_optimizers(flow, linear, flow.base, training)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, share) for one in optimizers]
    losses = []

    for i in range(1, steps + 1):
        loss = -flow.log_prob(draw(training.batch).to(flow.device)).mean()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss is {losses[-1]} at step {i}: try a lower --lr")
        flow.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()

        epoch = math.ceil(i / training.steps_per_epoch)
        if i % training.steps_per_epoch:
            yield Step(i, epoch, losses[-1])
            continue

        nll = None
        if held_out is not None:
            with torch.no_grad():
                nll = -flow.log_prob(held_out.to(flow.device)).mean().item()
        yield Step(i, epoch, losses[-1], float(np.mean(losses)), nll)
        losses.clear()


def cosine(share: float) -> float:
    """Falls from 1 to 0 along half a cosine as `share` goes from 0 to 1."""
    return (1 + math.cos(math.pi * share)) / 2


def fit_flow(flow: Flow, points: Points, training: Training, name: str) -> Fit:
    """Trains and evaluates a flow of a shape, with a progress bar."""
    start = time.perf_counter()
    history = []
    steps = training.epochs * training.steps_per_epoch
    with tqdm(total=steps, desc=name, unit="step", mininterval=1) as bar:
        for step in train_flow(flow, points.draw, points.held_out, training):
            bar.update()
            if step.held_out_nll is not None:
                history.append(step)
                text = f"held-out NLL {step.held_out_nll:.4f}"
                bar.set_postfix_str(text, refresh=False)

    metrics = evaluate_flow(flow, points)
    metrics["parameters"] = sum(p.numel() for p in flow.parameters())
    metrics["steps"] = history[-1].step
    metrics["seconds"] = time.perf_counter() - start
    return Fit(flow, history, metrics)


# ---------------------------------------------------------------- evaluate


def evaluate_flow(flow: Flow, points: Points) -> dict[str, float | None]:
    """A shape's test NLL, its standard error and both KL divergences; in nats."""
    nll = -evaluate(flow.log_prob, points.test, flow)
    truth_flow, flow_truth = kl_divergences(
        points.truth, flow.log_prob, flow.inverse, flow.base, flow
    )
    return {
        "test_nll": nll.mean().item(),
        "test_nll_se": nll.std().item() / math.sqrt(len(nll)),
        "kl_truth_flow": truth_flow,
        "kl_flow_truth": flow_truth,
    }


def report_run(metrics: dict[str, dict], points: Points, seed: int) -> None:
    """Prints the metrics of one seed, a row a model."""
    floor = ""
    if points.floor is not None:
        floor = f"; entropy of the truth, the least test NLL: {points.floor:.4f}"
    print(f"seed {seed}, all in nats{floor}")

    for name, row in metrics.items():
        texts = [f"test NLL {row['test_nll']:.4f}"]
        for key in KL:
            if key in row:
                value = math.inf if row[key] is None else row[key]
                texts.append(f"{KL[key]} {value:.4f}")
        texts.append(f"{row['steps']} steps, {row['seconds']:.0f} s")
        print(f"{name:12}", *texts, sep="   ")
        if "gain_over_mixture" in row:
            print(f"{'':12}", describe_gain(row), sep="   ")


def describe_gain(row: dict) -> str:
    """How far a flow of a table is ahead of what is simpler, on its test rows."""
    names = {"gaussian": "a Gaussian"}
    if row["modes"] > 1:
        names["mixture"] = f"a mixture of {row['modes']} Gaussians"
    simplest = list(names.values())[-1]
    if row["steps"] == 0:
        names.pop("mixture", None)

    gains = []
    for name, words in names.items():
        error = row[f"gain_over_{name}_se"]
        gains.append(f"{words} by {row[f'gain_over_{name}']:.2f} ± {error:.2f}")
    text = f"ahead of {', of '.join(gains)}"
    if row["steps"] == 0:
        text += f"; it is {simplest}, which training did not improve"
    return text


def summarize_runs(runs: list[dict[str, dict]]) -> dict[str, dict]:
    """Prints and returns mean, median, min and max over the seeds, a row a metric."""
    functions: dict[str, Callable]
    functions = {"mean": np.mean, "median": np.median, "min": np.min, "max": np.max}

    spread = {name: {} for name in runs[0]}
    for name in runs[0]:
        for key in ("test_nll", *KL, "seconds"):
            values = [run[name].get(key) for run in runs]
            if None in values:  # an infinite KL has no spread
                continue

            row = {
                word: float(function(values)) for word, function in functions.items()
            }
            spread[name][key] = row
            if len(runs) > 1:
                between = f"{row['min']:.4f} to {row['max']:.4f} over {len(runs)} seeds"
                print(f"{name:12} {key:14} mean {row['mean']:.4f} ({between})")
    return spread


# ---------------------------------------------------------------- save and score


def run_name(points: Points, modes: int | None) -> str:
    """What the files of a run start with; the default run's are those of the README."""
    usual = 1 if points.truth is not None else None
    return points.name if modes in (usual, None) else f"{points.name}_{modes}_modes"


def save_run(
    name: str,
    fits: dict[str, Fit],
    points: Points,
    seed: int,
    folder: Path,
    figures: Path,
) -> None:
    """Writes checkpoints and figures; `name` is that of the run."""
    from flowlib.plots import moons as plots

    for architecture, fit in fits.items():
        files.save_model(
            fit.flow,
            folder / f"{name}_{architecture}.pt",
            step=fit.metrics["steps"],
            seed=seed,
            metrics=fit.metrics,
            made_from=points.made_from,
        )

    flows = {name: fit.flow for name, fit in fits.items()}
    metrics = {name: fit.metrics for name, fit in fits.items()}
    histories = {name: fit.history for name, fit in fits.items()}

    prefix = "" if name == "moons" else f"{name}_"
    losses = plots.plot_losses(histories, points, next(iter(metrics.values())))
    files.save_figure(losses, figures, f"{prefix}loss_plot.png")

    if len(points.columns) != 2:
        pairs = plots.plot_pairs(flows, points, seed)
        files.save_figure(pairs, figures, f"{prefix}pairs.png")
    else:
        densities = plots.plot_densities(flows, points, metrics, seed)
        files.save_figure(densities, figures, f"{prefix}density_contours.png")
        plots.save_animation(flows, points, figures / f"{name}.gif", seed)


def load_fitted(name: str, points: Points, folder: Path) -> dict[str, Flow]:
    """The flows that the run of this name fitted to these points."""
    fit_first = "fit it with the same command without --score and --fill"
    flows = {}
    for architecture in ARCHITECTURES:
        file = folder / f"{name}_{architecture}.pt"
        flow = files.load_model(file, Flow, hint=fit_first)
        files.require_same_data(file, flow.made_from, points.made_from, fit_first)
        if "held_out_log_p" not in flow.metrics:
            raise UserError(f"{file} is of an earlier version: {fit_first}")
        print(f"{files.short(file)}: test NLL {flow.metrics['test_nll']:.4f} nats")
        flows[architecture] = flow
    return flows


def use_flows(args, flows: dict[str, Flow], points: Points) -> None:
    """Scores the rows of --score, or fills the gaps of --fill."""
    from flowlib.plots.tables import plot_gaps

    where = (table_format(args), args.figures)
    if args.score:
        score_file(args.score, flows, points, *where)
    else:
        samples, gaps = fill_file(args.fill, flows, points, *where, args.seed)
        figure = plot_gaps(samples, gaps, points.train, points.columns)
        files.save_figure(figure, args.figures, f"{args.fill.stem}_gaps.png")


# ---------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None):
    parser = Parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    shapes = ", ".join(SHAPES)
    add("--data", default="moons", help=f"{shapes}, or a .npy or .csv file")
    noise = f"standard deviation of a shape's noise (default: {NOISE})"
    add("--noise", type=number(float, 0.02, 1), help=noise)
    columns = "columns of the file to take (default: all with numbers)"
    add("--columns", nargs="+", metavar="NAME", default=[], help=columns)
    score = "only score this file's rows, with the flows of --data"
    add("--score", type=Path, metavar="FILE", help=score)

    fill = "only fill the gaps of this file's rows, with the better flow of --data"
    add("--fill", type=Path, metavar="FILE", help=fill)

    # How the table is written.
    separator = "what separates a table's columns, '\\t' for tabs (default: found)"
    add("--separator", metavar="MARK", help=separator)
    decimal = "a table's decimal mark (default: found in each column)"
    add("--decimal", choices=(".", ","), help=decimal)
    thousands = "what groups a table's thousands (default: found in each column)"
    add("--thousands", metavar="MARK", help=thousands)
    header = "whether a table's first row has the columns' names (default: found)"
    add("--header", action=BooleanOptionalAction, help=header)

    add = parser.add_argument_group("model").add_argument
    for name, low, high, text in (
        ("layers", 2, 1000, "couplings in a flow"),
        ("hidden", 1, 4096, "width of the couplings' networks"),
        ("bins", 0, 500, "bins of the couplings' splines, 0 for affine couplings"),
    ):
        text += f" (default: {SIZES[name]}; of a table {TABLE_SIZES[name]})"
        add(f"--{name}", type=number(int, low, high), help=text)
    modes = "Gaussians in the base (default: 1; of a table those that fit best)"
    add("--modes", type=number(int, 1, 100), help=modes)

    add = parser.add_argument_group("training").add_argument
    for name, least, text in (
        ("epochs", 1, "times that the held-out points are looked at"),
        ("steps-per-epoch", 1, "training steps between two of these times"),
        ("batch", 1, "points in a step"),
        ("lr", 1e-8, "highest learning rate"),
    ):
        field = name.replace("-", "_")
        default = getattr(Training(), field)
        others = [f"{getattr(one, field):g}" for one in (FEW_ROWS, MANY_ROWS)]
        text += f" (default: {default:g}; of a table {' or '.join(others)})"
        add(f"--{name}", type=number(type(default), least, 1_000_000), help=text)
    seeds = "number of runs, from --seed on"
    add("--seeds", type=number(int, 1, 1000), default=1, metavar="N", help=seeds)
    parser.add_common_flags("folder of the two checkpoints (default: checkpoints/)")
    parser.set_defaults(checkpoint=CHECKPOINTS)

    args = parser.parse_args(argv)
    check_flags(parser, args)
    return args


def check_flags(parser: Parser, args) -> None:
    """Ends with an error if a flag was given that has no meaning with the others."""
    if args.noise is not None and args.data not in ("moons", "spirals"):
        parser.error(f"--noise has no meaning with --data {args.data}")
    if args.data in SHAPES:
        of_tables = ("separator", "decimal", "thousands", "header", "columns")
        parser.refuse(args, f"with --data {args.data}", *of_tables, "score", "fill")
    if args.decimal and args.decimal == args.thousands:
        parser.error("--decimal and --thousands must differ")

    sizes = (*SIZES, "epochs", "steps_per_epoch", "batch", "lr", "seeds")
    if args.score:
        parser.refuse(args, "with --score", *sizes, "metrics", "fill")
    if args.fill:
        parser.refuse(args, "with --fill", *sizes, "metrics")


def given_flags(args, *names: str) -> dict[str, Any]:
    """The values of those of these flags that were given."""
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def make_training(args, defaults: Training) -> Training:
    """How long and how fast to train: the defaults, or what the flags say."""
    flags = ("epochs", "steps_per_epoch", "batch", "lr")
    return replace(defaults, **given_flags(args, *flags))


def fit_shape_flows(args, points: Points, seed: int) -> dict[str, Fit]:
    """Both architectures, fitted to a shape."""
    sizes = SIZES | given_flags(args, *SIZES) | {"modes": args.modes or 1}
    fits = {}
    for name in ARCHITECTURES:
        flow = build_flow(name, points, seed=seed, **sizes).to(args.device)
        fits[name] = fit_flow(flow, points, make_training(args, Training()), name)
    return fits


def fit_table_flows(args, points: Points, seed: int) -> dict[str, Fit]:
    """Both architectures, fitted to a table from a mixture on."""
    choice = choose_mixture(points.folds, (args.modes,) if args.modes else MODES)
    modes = choice.modes
    defaults = FEW_ROWS
    if len(points.folds) == 1:
        defaults = MANY_ROWS
        modes = args.modes or min(FIRST_MODES, modes)

    sizes = TABLE_SIZES | given_flags(args, *SIZES)
    training = make_training(args, defaults)
    train = partial(train_flow, held_out=None, training=training)
    fits = {}
    for name in ARCHITECTURES:
        start = make_start(name, seed=seed, device=args.device, **sizes)
        fits[name] = fit_table(start, train, points, choice, modes, training, name)
    return fits


@one_line_errors()
@threads(1)
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    places = (args.checkpoint, args.figures)

    runs = []
    for seed in range(args.seed, args.seed + args.seeds):
        points = load_points(args, seed)
        name = run_name(points, args.modes)
        if args.score or args.fill:
            return use_flows(args, load_fitted(name, points, args.checkpoint), points)

        files.require_writable(*places, files=[args.metrics])
        with files.lock(args.checkpoint / f"{name}_realnvp.pt"):
            fit = fit_table_flows if points.truth is None else fit_shape_flows
            fits = fit(args, points, seed)
            if seed == args.seed:
                save_run(name, fits, points, seed, *places)

        runs.append({name: fit.metrics for name, fit in fits.items()})
        report_run(runs[-1], points, seed)

    spread = summarize_runs(runs)
    if args.metrics:
        files.write_metrics(
            args.metrics,
            {
                "data": points.name,
                "modes": args.modes,
                "floor": points.floor,
                "models": runs[0],
                "seeds": args.seeds,
                "spread": spread,
            },
            seconds=time.perf_counter() - start,
            device=args.device,
            seed=args.seed,
        )


if __name__ == "__main__":
    main()
