"""Fits two normalizing flows to two moons and draws what they learned.

    python train_moons.py

trains a RealNVP-style flow (alternating masks, invertible linear layers between the couplings) and a permutation flow (one mask,
fixed random permutations between them) by maximum likelihood: it minimises -log p(x) = -(log p(z) + Σ log|det J|), z = f(x).
The two-moons density is known exactly, so the printed KL divergence to the truth is an absolute measure: 0 is perfect.

    python train_moons.py --data points.csv

fits your own points (.npy or .csv with two columns) instead; there is no truth to compare with then.

Writes   figures/loss_plot.png, figures/density_contours.png, checkpoints/moons_realnvp.pt, checkpoints/moons_permutation.pt
         (with --data the names start with that file's name)
Takes    about 95 seconds on 2 CPU cores; ends at a KL divergence of about 0.005 nats (RealNVP) and 0.007 nats (permutation)
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from common import ROOT, Parser, UserError, number, one_line_errors, save_figure, write_metrics
from flows2d import Flow, permutation_flow, realnvp, save_flow
from toy2d import TwoMoons, grid, grid_axes

ARCHITECTURES = {"realnvp": realnvp, "permutation": permutation_flow}
TITLES = {"realnvp": "RealNVP + linear layers", "permutation": "Permutation flow"}
COLOURS = {"realnvp": "tab:blue", "permutation": "tab:orange"}

# ---------------------------------------------------------------- data


@dataclass
class Points:
    """What is fitted: `draw(n)` gives a training batch (n, 2); `truth` is the exact distribution where it is known."""

    name: str
    draw: Callable[[int], Tensor]
    held_out: Tensor
    test: Tensor
    truth: TwoMoons | None = None


def moons(noise: float, seed: int) -> Points:
    """Two moons: every training batch is drawn afresh, so nothing can be overfitted."""
    truth = TwoMoons(noise)
    generator = torch.Generator().manual_seed(seed)
    held_out, test = truth.sample(5_000, generator), truth.sample(20_000, generator)
    return Points("moons", lambda n: truth.sample(n, generator), held_out, test, truth)


def points_from_file(path: Path, seed: int) -> Points:
    """The user's points, shuffled: 80 % to train on, 10 % held out, 10 % to test on. Raises UserError if they cannot be used."""
    points = torch.from_numpy(read_points(path)).to(torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)
    points = points[torch.randperm(len(points), generator=generator)]
    tenth = len(points) // 10
    held_out, test, train = points.split([tenth, tenth, len(points) - 2 * tenth])
    return Points(path.stem, lambda n: train[torch.randint(len(train), (n,), generator=generator)], held_out, test)


def read_points(path: Path) -> np.ndarray:
    """An (N, 2) array from a .npy or .csv file (a header line is skipped); raises UserError if it is not one of finite numbers."""
    try:
        if path.suffix == ".npy":
            points = np.load(path, allow_pickle=False)
        elif path.suffix == ".csv":
            with open(path, encoding="utf-8") as lines:
                first = lines.readline().split(",")[0].strip()
            header = not first.lstrip("+-.")[:1].isdigit() and first.lower() not in ("nan", "inf", "-inf")
            points = np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2)
        else:
            raise UserError(f"{path}: --data takes a .npy or .csv file")
        points = points.astype(np.float64)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot read points from {path}: {reason}") from None
    if points.ndim != 2 or points.shape[1] != 2:
        raise UserError(f"{path} must hold two columns, one point a row; its shape is {points.shape}")
    if not np.isfinite(points).all():
        raise UserError(
            f"{path} holds NaN or infinite values, first in row {int(np.argmin(np.isfinite(points).all(1))) + 1}: remove those rows"
        )
    if len(points) < 100:
        raise UserError(f"{path} holds {len(points)} points; at least 100 are needed to train, hold out and test")
    if (points.std(0) == 0).any():
        raise UserError(f"{path}: a column is constant, so the points have no density in the plane")
    return points


# ---------------------------------------------------------------- train


def train(
    flow: Flow, draw: Callable[[int], Tensor], held_out: Tensor, *, epochs: int, steps_per_epoch: int, batch: int, lr: float
) -> Iterator[dict]:
    """Fits the flow by maximum likelihood (Adam, warm-up over 2 % of the steps, then a cosine to zero); one record a step.

    A record holds step, epoch, loss (nats) and lr; each epoch's last one also train_nll (the epoch's mean) and held_out_nll.
    The flow ends with the weights of the epoch that was best on the held-out points.
    Raises UserError if the loss stops being a number.
    """
    device = flow.base_mean.device
    held_out = held_out.to(device)
    steps = epochs * steps_per_epoch
    optimiser = torch.optim.Adam(flow.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, 50 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    best, best_weights = math.inf, None
    for epoch in range(1, epochs + 1):
        total = 0.0
        for i in range(1, steps_per_epoch + 1):
            loss = -flow.log_prob(draw(batch).to(device)).mean()
            record = {"step": (epoch - 1) * steps_per_epoch + i, "epoch": epoch, "loss": loss.item(), "lr": schedule.get_last_lr()[0]}
            if not math.isfinite(record["loss"]):
                raise UserError(f"the loss is {record['loss']} at step {record['step']}: try a lower --lr")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += record["loss"]
            if i == steps_per_epoch:
                with torch.no_grad():
                    record |= {"train_nll": total / steps_per_epoch, "held_out_nll": -flow.log_prob(held_out).mean().item()}
                if record["held_out_nll"] < best:
                    best, best_weights = record["held_out_nll"], {name: value.clone() for name, value in flow.state_dict().items()}
            yield record
    if best_weights is not None:
        flow.load_state_dict(best_weights)


def fit(name: str, points: Points, args) -> tuple[Flow, list[dict], dict]:
    """Builds and trains one architecture; returns the flow, a record an epoch, and its figures on the test points."""
    torch.manual_seed(args.seed)
    sample = points.draw(10_000)
    flow = ARCHITECTURES[name](2, args.layers, (args.hidden, args.hidden), mean=sample.mean(0), std=sample.std(0)).to(args.device)
    history, start = [], time.perf_counter()
    steps_per_epoch = args.steps_per_epoch
    with tqdm(total=args.epochs * steps_per_epoch, desc=TITLES[name], unit="step", mininterval=1) as bar:
        for record in train(
            flow, points.draw, points.held_out, epochs=args.epochs, steps_per_epoch=steps_per_epoch, batch=args.batch, lr=args.lr
        ):
            bar.update()
            if "held_out_nll" in record:
                history.append(record)
                bar.set_postfix_str(f"held-out NLL {record['held_out_nll']:.4f}", refresh=False)
    figures = evaluate(flow, points)
    figures |= {
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "steps": args.epochs * steps_per_epoch,
    }
    return flow, history, figures


# ---------------------------------------------------------------- evaluate


@torch.no_grad()
def evaluate(flow: Flow, points: Points) -> dict[str, float]:
    """Test NLL and, where the truth is known, the KL divergence to it, E[log p_true - log p_flow], each with its standard error (nats)."""
    log_p = flow.log_prob(points.test.to(flow.base_mean.device)).double().cpu()
    figures = mean_and_error("test_nll", -log_p)
    if points.truth is not None:
        figures |= mean_and_error("kl", points.truth.log_prob(points.test) - log_p)
    return figures


def mean_and_error(name: str, values: Tensor) -> dict[str, float]:
    """The mean of independent values and its standard error."""
    return {name: values.mean().item(), f"{name}_se": (values.std() / math.sqrt(len(values))).item()}


# ---------------------------------------------------------------- figures


def loss_figure(histories: dict[str, list[dict]], floor: float | None) -> Figure:
    """NLL over epochs, train and held-out; with a floor (the true entropy) a second panel shows the distance to it."""
    figure = Figure(figsize=(10 if floor is not None else 6, 4), layout="constrained")
    panels = figure.subplots(1, 2 if floor is not None else 1, squeeze=False)[0]
    for name, history in histories.items():
        epochs = [record["epoch"] for record in history]
        for key, style, label in (("train_nll", dict(alpha=0.45, linewidth=1), "train"), ("held_out_nll", {}, "held-out")):
            values = np.array([record[key] for record in history])
            panels[0].plot(epochs, values, color=COLOURS[name], label=f"{TITLES[name]}, {label}", **style)
            if floor is not None and key == "train_nll":
                panels[1].semilogy(epochs, np.maximum(values - floor, 1e-4), color=COLOURS[name], label=TITLES[name])
    panels[0].set(xlabel="epoch", ylabel="negative log-likelihood (nats per point)", title="Training")
    if floor is not None:
        panels[0].axhline(floor, color="black", linestyle="--", linewidth=1, label=f"entropy of the truth, {floor:.4f}")
        panels[1].set(xlabel="epoch", ylabel="train NLL - entropy (nats)", title="Distance to the floor (fresh points in every batch)")
        panels[1].grid(alpha=0.3, which="both")
        panels[1].legend(fontsize=8)
    panels[0].grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return figure


@torch.no_grad()
def density_figure(flows: dict[str, Flow], points: Points, figures: dict[str, dict], seed: int = 0) -> Figure:
    """2x2: each model's density (left) and samples (right), one row a model; where it is known, the true density's contour on top."""
    if points.truth is not None:
        bounds = points.truth.bounds(5)
    else:
        low, high = points.test.min(0).values, points.test.max(0).values
        margin = 0.1 * (high - low)
        bounds = tuple(torch.stack([low - margin, high + margin]).T.flatten().tolist())
    spacing = max(bounds[1] - bounds[0], bounds[3] - bounds[2]) / 400
    x, y = grid_axes(bounds, spacing)
    where, _ = grid(bounds, spacing)
    truth = None if points.truth is None else points.truth.log_prob(where).exp().reshape(len(y), len(x))

    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for (left, right), (name, flow) in zip(panels, flows.items()):
        device, dtype = flow.base_mean.device, flow.base_mean.dtype
        density = flow.log_prob(where.to(device, dtype)).exp().reshape(len(y), len(x)).cpu()
        top = float((density if truth is None else truth).max())
        filled = left.contourf(x, y, density, levels=np.linspace(0.03, 1.15, 15) * top, cmap="viridis", extend="max")
        figure.colorbar(filled, ax=left, label="density", format="%.2f", shrink=0.9)
        drawn = flow.sample(4000, torch.Generator(device).manual_seed(seed)).cpu()
        right.scatter(*drawn.T, s=2, alpha=0.5, color=COLOURS[name], linewidths=0, rasterized=True)
        for panel, colour in ((left, "white"), (right, "black")):
            if truth is not None:
                panel.contour(x, y, truth, levels=[0.1 * top], colors=colour, linewidths=0.7, linestyles="--")
            panel.set_aspect("equal")
        kl = (
            f"KL to the truth {figures[name]['kl']:.4f} nats" if "kl" in figures[name] else f"test NLL {figures[name]['test_nll']:.3f} nats"
        )
        left.set(title=f"{TITLES[name]}: density\n{kl}", ylabel="$x_2$")
        right.set(title=f"{TITLES[name]}: 4,000 samples", xlim=bounds[:2], ylim=bounds[2:])
    for panel in panels[-1]:
        panel.set_xlabel("$x_1$")
    if truth is not None:
        figure.suptitle("Two flows on two moons (dashed: a tenth of the true density's maximum)")
    return figure


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="fit the points in this .npy or .csv file (two columns) instead of two moons"
    )
    parser.add_argument(
        "--noise", type=number(float, 0.02, 1), default=0.05, help="standard deviation of the moons' noise (default %(default)s)"
    )
    parser.add_argument("--layers", type=number(int, 2), default=12, help="couplings per flow (default %(default)s)")
    parser.add_argument(
        "--hidden", type=number(int, 1), default=64, help="width of each coupling's two hidden layers (default %(default)s)"
    )
    parser.add_argument("--epochs", type=number(int, 1), default=80, help="default %(default)s")
    parser.add_argument("--steps-per-epoch", type=number(int, 1), default=50, help="batches per epoch (default %(default)s)")
    parser.add_argument("--batch", type=number(int, 1), default=512, help="points per batch (default %(default)s)")
    parser.add_argument("--lr", type=number(float, 1e-8), default=5e-3, help="peak learning rate (default %(default)s)")
    parser.add_common_flags(checkpoint="folder for the two checkpoints (default checkpoints/)")
    parser.set_defaults(checkpoint=ROOT / "checkpoints")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    points = moons(args.noise, args.seed) if args.data is None else points_from_file(args.data, args.seed)
    floor = points.truth.entropy() if points.truth else None
    prefix = "" if args.data is None else f"{points.name}_"

    flows, histories, figures = {}, {}, {}
    for name in ARCHITECTURES:
        flows[name], histories[name], figures[name] = fit(name, points, args)
        save_flow(
            flows[name], args.checkpoint / f"{points.name}_{name}.pt", step=figures[name]["steps"], seed=args.seed, metrics=figures[name]
        )
    print_table(figures, floor)
    save_figure(loss_figure(histories, floor), args.figures, f"{prefix}loss_plot.png")
    save_figure(density_figure(flows, points, figures, args.seed), args.figures, f"{prefix}density_contours.png")
    if args.metrics:
        write_metrics(
            args.metrics,
            {"data": points.name, "floor": floor, "models": figures},
            seconds=time.perf_counter() - start,
            device=args.device,
            seed=args.seed,
        )


def print_table(figures: dict[str, dict], floor: float | None) -> None:
    """The final figures, a row a model."""
    if floor is not None:
        print(f"entropy of the truth, the floor of any test NLL: {floor:.4f} nats")
    for name, row in figures.items():
        kl = f"   KL to the truth {row['kl']:.4f} ± {row['kl_se']:.4f}" if "kl" in row else ""
        nll = f"test NLL {row['test_nll']:.4f} ± {row['test_nll_se']:.4f}"
        print(f"{TITLES[name]:25} {nll}{kl}   {row['seconds']:.0f} s   {row['parameters']:,} parameters")


if __name__ == "__main__":
    main()
