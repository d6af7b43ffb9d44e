"""Fits two normalizing flows to two moons and draws what they learned.

    python train_moons.py

trains a RealNVP (alternating masks, invertible linear layers between the couplings) and
a permutation flow (one mask, fixed random permutations between them) by maximum
likelihood: it minimizes -log p(x) = -(log p(z) + Σ log|det J|), z = f(x). The density
of the moons is known exactly, so the printed KL divergences are absolute: 0 is perfect.

    python train_moons.py --data spirals      other shapes: spirals, checkerboard
    python train_moons.py --data points.csv   your points (.npy, .csv), up to 64 columns
    python train_moons.py --data points.csv --score new.csv  their log p, outliers first
    python train_moons.py --modes 2           a base of two Gaussians: no bridge
    python train_moons.py --seeds 3           mean and spread; figures of the first seed

Writes   figures/loss_plot.png              negative log-likelihood over epochs
         figures/density_contours.png       densities and samples
         figures/moons.gif                  noise becomes moons
         checkpoints/moons_realnvp.pt, checkpoints/moons_permutation.pt
         (of other data, --noise and --modes the names start with theirs; files have no
         known density to compare, and pairs.png unless they have two columns)
Takes    about 45 seconds on one CPU core (AMD EPYC); ends at KL(truth || flow) = 0.0040
         nats (both flows, medians of three seeds), with --modes 2 at 0.0022 and 0.0013
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowlib import files
from flowlib.cli import Parser, number, one_line_errors, threads
from flowlib.files import CHECKPOINTS, UserError
from flowlib.grids import evaluate, kl_flow_truth, kl_truth_flow
from flowlib.points import NOISE, Points, make_shape
from flowlib.tables.points import make_file_points, score_points
from flowlib.tables.reader import read_points
from flowlib.toy2d import SHAPES
from flows2d import Flow, InvertibleLinear, permutation_flow, realnvp

ARCHITECTURES: dict[str, Callable[..., Flow]]
ARCHITECTURES = {"realnvp": realnvp, "permutation": permutation_flow}
# The largest gradient norm, and the linear layers' share of the learning rate. Each of
# them moves everything: clipped at 1, or at a tenth of the rate, they slow the others.
CLIP = 10.0
LINEAR_SHARE = 0.01
KL = {"kl_truth_flow": "KL(truth || flow)", "kl_flow_truth": "KL(flow || truth)"}


@dataclass(frozen=True)
class Training:
    """How long and how fast to train."""

    epochs: int = 40
    steps_per_epoch: int = 50
    batch: int = 512
    lr: float = 8e-3  # the highest
    patience: float = (
        math.inf
    )  # epochs without a lower held-out NLL after which it ends


class Step(NamedTuple):
    """A training step and its loss; an epoch's last one also has the NLLs. In nats."""

    step: int
    epoch: int
    loss: float
    train_nll: float | None = None  # the mean loss of the epoch
    held_out_nll: float | None = None


# ---------------------------------------------------------------- train


def load_points(data: str, columns: list[str], noise: float, seed: int) -> Points:
    """The points that --data names: a shape's, or those of a file."""
    if data in SHAPES:
        return make_shape(data, noise, seed)
    return make_file_points(Path(data), columns, seed)


def build_flow(
    name: str, points: Points, layers: int, hidden: int, modes: int, seed: int
) -> Flow:
    """An untrained flow that standardizes these points; the seed decides its weights.

    Raises UserError if it would leave a column as it is.
    """
    torch.manual_seed(seed)  # the first weights and the permutations
    sample = points.draw(10_000)
    mean, std = sample.mean(0), sample.std(0)
    build = ARCHITECTURES[name]
    widths = (hidden, hidden)
    try:
        flow = build(sample.shape[1], layers, widths, mean, std, modes)
    except ValueError as error:  # a few layers can miss some of many columns
        raise UserError(f"the {name} flow: {error}") from None
    return flow.to(sample.dtype)


def make_optimizer(flow: Flow, lr: float) -> torch.optim.Optimizer:
    """Adam; the linear layers learn at LINEAR_SHARE of the rate."""
    linear: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for transform in flow.transforms:
        group = linear if isinstance(transform, InvertibleLinear) else others
        group.extend(transform.parameters())
    others.extend(flow.base.parameters())
    groups: list[dict[str, Any]] = [{"params": others}]
    groups.append({"params": linear, "lr": LINEAR_SHARE * lr})
    return torch.optim.Adam(groups, lr=lr, betas=(0.9, 0.99), fused=True)


def train_flow(
    flow: Flow, draw: Callable[[int], Tensor], held_out: Tensor, training: Training
) -> Iterator[Step]:
    """Fits the flow by maximum likelihood; yields a `Step` each step.

    Adam with the gradient norm clipped at CLIP; the learning rate rises for 2 % of the
    steps, then falls along a cosine to zero. The flow ends with the weights of the
    epoch that was best on the held-out points. `training.patience` ends the training
    soon after that epoch, so that few points are not learned by heart. Raises UserError
    if the loss stops being a number.
    """
    steps = training.epochs * training.steps_per_epoch
    optimizer = make_optimizer(flow, training.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, 50 * (i + 1) / steps) * cosine(i / steps)
    )
    held_out = held_out.to(flow.device)
    losses = []
    best_nll = math.inf
    best_epoch = 0
    best_weights = flow.state_dict()

    for i in range(1, steps + 1):
        loss = -flow.log_prob(draw(training.batch).to(flow.device)).mean()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss is {losses[-1]} at step {i}: try a lower --lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
        optimizer.step()
        schedule.step()

        epoch = math.ceil(i / training.steps_per_epoch)
        if i % training.steps_per_epoch:
            yield Step(i, epoch, losses[-1])
            continue

        with torch.no_grad():
            nll = -flow.log_prob(held_out).mean().item()
        if nll < best_nll:
            best_nll = nll
            best_epoch = epoch
            weights = flow.state_dict()
            best_weights = {name: value.clone() for name, value in weights.items()}
        yield Step(i, epoch, losses[-1], float(np.mean(losses)), nll)
        losses.clear()
        if epoch - best_epoch >= training.patience:
            break

    flow.load_state_dict(best_weights)


def cosine(share: float) -> float:
    """Falls from 1 to 0 along half a cosine as `share` goes from 0 to 1."""
    return (1 + math.cos(math.pi * share)) / 2


class Fit(NamedTuple):
    """A trained flow, the last `Step` of each epoch, and its metrics."""

    flow: Flow
    history: list[Step]
    metrics: dict


def fit_flow(flow: Flow, points: Points, training: Training, name: str) -> Fit:
    """Trains and evaluates a flow, with a progress bar."""
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
    """Test NLL, its standard error and, where the truth is known, both KLs; in nats."""
    nll = -evaluate(flow.log_prob, points.test, flow)
    error = nll.std() / math.sqrt(len(nll))
    metrics = {"test_nll": nll.mean().item(), "test_nll_se": error.item()}
    if points.truth is not None:
        metrics["kl_truth_flow"] = kl_truth_flow(points.truth, flow.log_prob, flow)
        reverse = kl_flow_truth(points.truth, flow.inverse, flow.base, flow)
        metrics["kl_flow_truth"] = reverse
    return metrics


def report_run(metrics: dict[str, dict], points: Points, seed: int) -> None:
    """Prints the metrics of one seed, a row a model."""
    if points.floor is not None:
        beside = f"entropy of the truth, the least test NLL: {points.floor:.4f}"
    else:
        nll = -points.gaussian.log_prob(points.test.double()).mean().item()
        beside = f"test NLL of a fitted Gaussian: {nll:.4f}"
        if nll < min(row["test_nll"] for row in metrics.values()):
            beside += ", better than either flow: more points would help"
    print(f"seed {seed}, all in nats; {beside}")

    for name, row in metrics.items():
        texts = [f"test NLL {row['test_nll']:.4f}"]
        for key in KL:
            if key in row:
                value = math.inf if row[key] is None else row[key]
                texts.append(f"{KL[key]} {value:.4f}")
        texts.append(f"{row['steps']} steps, {row['seconds']:.0f} s")
        print(f"{name:12}", *texts, sep="   ")


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


def run_name(points: Points, modes: int) -> str:
    """What the files of a run start with; the default run's are those of the README."""
    return points.name if modes == 1 else f"{points.name}_{modes}_modes"


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
    losses = plots.plot_losses(histories, points)
    files.save_figure(losses, figures, f"{prefix}loss_plot.png")
    if len(points.columns) != 2:
        pairs = plots.plot_pairs(flows, points, seed)
        files.save_figure(pairs, figures, f"{prefix}pairs.png")
    else:
        densities = plots.plot_densities(flows, points, metrics, seed)
        files.save_figure(densities, figures, f"{prefix}density_contours.png")
        plots.save_animation(flows, points, figures / f"{name}.gif", seed)


def score_file(
    path: Path, name: str, points: Points, folder: Path, figures: Path
) -> None:
    """Writes the log p of a file's points under both flows, the least likely first.

    `name` is that of the run that fitted the flows to `points`.
    """
    import pandas  # here, for it takes half a second to import

    fit_first = "fit it with the same command without --score"
    flows = {}
    for architecture in ARCHITECTURES:
        file = folder / f"{name}_{architecture}.pt"
        flow = files.load_model(file, Flow, hint=fit_first)
        files.require_same_data(file, flow.made_from, points.made_from, fit_first)
        print(f"{files.short(file)}: test NLL {flow.metrics['test_nll']:.4f} nats")
        flows[architecture] = flow

    table = read_points(path, points.columns, to_fit=False)
    rows = torch.from_numpy(table.points)
    columns: dict[str, Any] = {"row": range(1, len(rows) + 1)}
    for architecture, flow in flows.items():
        log_p, share = score_points(flow, points.train, rows)
        columns[f"log_p_{architecture}"] = log_p.numpy()
        columns[f"less_likely_{architecture}"] = share.numpy()
    scores = pandas.DataFrame(columns).sort_values(f"log_p_{architecture}")

    file = figures / f"{path.stem}_scores.csv"
    files.write_atomically(file, lambda part: scores.to_csv(part, index=False))
    print(scores.head(10).to_string(index=False, float_format="{:,.3f}".format))
    what = "log p in nats, and the share of the training points with less"
    print(f"wrote {file}: {what}")


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
    score = "only score this file's points, with the flows of --data"
    add("--score", type=Path, metavar="FILE", help=score)

    add = parser.add_argument_group("model").add_argument
    add("--layers", type=number(int, 2, 1000), default=20, help="couplings in a flow")
    hidden = "width of the couplings' networks"
    add("--hidden", type=number(int, 1, 4096), default=32, help=hidden)
    modes = "Gaussians in the base; 1 is the standard normal"
    add("--modes", type=number(int, 1, 100), default=1, help=modes)

    add = parser.add_argument_group("training").add_argument
    for name, low, text in (
        ("epochs", 1, "times that the held-out points are looked at"),
        ("steps-per-epoch", 1, "training steps between two of these times"),
        ("batch", 1, "points in a step"),
        ("lr", 1e-8, "highest learning rate"),
    ):
        default = getattr(Training(), name.replace("-", "_"))
        kind = number(type(default), low, 1_000_000)
        add(f"--{name}", type=kind, default=default, help=text)
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
        parser.refuse(args, f"with --data {args.data}", "columns", "score")

    if args.score:
        sizes = (
            "layers",
            "hidden",
            "epochs",
            "steps_per_epoch",
            "batch",
            "lr",
            "seeds",
        )
        parser.refuse(args, "with --score", *sizes, "metrics")


@one_line_errors()
@threads(1)
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    # A shape's points are always new, so nothing can be learned by heart.
    patience = math.inf if args.data in SHAPES else 10
    training = Training(
        args.epochs, args.steps_per_epoch, args.batch, args.lr, patience
    )

    runs = []
    for seed in range(args.seed, args.seed + args.seeds):
        points = load_points(args.data, args.columns, args.noise or NOISE, seed)
        name = run_name(points, args.modes)
        places = (args.checkpoint, args.figures)
        if args.score:
            return score_file(args.score, name, points, *places)
        files.require_writable(*places, files=[args.metrics])
        with files.lock(args.checkpoint / f"{name}_realnvp.pt"):
            fits = {}
            for architecture in ARCHITECTURES:
                sizes = (args.layers, args.hidden, args.modes)
                flow = build_flow(architecture, points, *sizes, seed).to(args.device)
                fits[architecture] = fit_flow(flow, points, training, architecture)
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
