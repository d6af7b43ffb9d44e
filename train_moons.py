"""Fits two normalizing flows to two moons and draws what they learned.

    python train_moons.py

trains a RealNVP-style flow (alternating masks, invertible linear layers between the couplings) and a permutation flow (one mask,
fixed random permutations between them) by maximum likelihood: it minimises -log p(x) = -(log p(z) + Σ log|det J|), z = f(x).
The two-moons density is known exactly, so the printed KL divergence to the truth is an absolute measure: 0 is perfect.

    python train_moons.py --data spirals           other shapes: circles, spirals, checkerboard
    python train_moons.py --data points.csv        your own points (.npy or .csv, two columns); there is no truth to compare with then
    python train_moons.py --seeds 3                three seeds: mean and spread; the figures are the first one's

Writes   figures/loss_plot.png               negative log-likelihood over epochs, both models
         figures/density_contours.png        densities and samples
         figures/density_error.png           where the densities are wrong
         figures/moons_conditional.png       inpainting in 2-D: one coordinate given the other
         figures/moons_layers.png            how noise becomes moons, layer by layer
         checkpoints/moons_realnvp.pt, checkpoints/moons_permutation.pt
         (with another --data the names start with its name)
Takes    about a minute on one CPU core; ends at a KL divergence of about 0.005 nats (RealNVP) and 0.004 nats (permutation)
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, UserError, require_writable, save_figure, write_metrics
from flowlib.grids import mode_around, modes, normalised
from flowlib.inpainting.map_estimate import map_inpaint
from flowlib.plots.moons import TITLES, conditional_figure, density_figure, error_figure, layers_figure, loss_figure
from flowlib.toy2d import SHAPES, Checkerboard, NoisyCurves, read_points
from flows2d import Flow, InvertibleLinear, permutation_flow, realnvp, save_flow

ARCHITECTURES = {"realnvp": realnvp, "permutation": permutation_flow}

# ---------------------------------------------------------------- data


@dataclass
class Points:
    """What is fitted: `draw(n)` gives a training batch (n, 2); `truth` is the exact distribution where it is known, `floor` its entropy."""

    name: str
    title: str
    draw: Callable[[int], Tensor]
    held_out: Tensor
    test: Tensor
    truth: NoisyCurves | Checkerboard | None = None
    floor: float | None = None


def make_points(data: str, noise: float, seed: int) -> Points:
    """What --data names: one of toy2d.SHAPES, or a file."""
    return shape_points(data, noise, seed) if data in SHAPES else file_points(Path(data), seed)


def shape_points(shape: str, noise: float, seed: int) -> Points:
    """One of toy2d.SHAPES: every training batch is drawn afresh, so nothing can be overfitted."""
    truth = SHAPES[shape](noise)
    generator = torch.Generator().manual_seed(seed)
    held_out, test = truth.sample(5_000, generator), truth.sample(20_000, generator)
    title = {"moons": "two moons", "circles": "two circles", "spirals": "two spirals", "checkerboard": "a checkerboard"}[shape]
    return Points(shape, title, lambda n: truth.sample(n, generator), held_out, test, truth, truth.entropy())


def file_points(path: Path, seed: int) -> Points:
    """The user's points, shuffled: 80 % to train on, 10 % held out, 10 % to test on. Raises UserError if they cannot be used."""
    points = torch.from_numpy(read_points(path)).to(torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)
    points = points[torch.randperm(len(points), generator=generator)]
    tenth = len(points) // 10
    held_out, test, train = points.split([tenth, tenth, len(points) - 2 * tenth])
    return Points(path.stem, path.name, lambda n: train[torch.randint(len(train), (n,), generator=generator)], held_out, test)


# ---------------------------------------------------------------- train


def train(
    flow: Flow, draw: Callable[[int], Tensor], held_out: Tensor, *, epochs: int, steps_per_epoch: int, batch: int, lr: float
) -> Iterator[dict]:
    """Fits the flow by maximum likelihood (Adam, gradient norm clipped at 1, warm-up over 2 % of the steps, then a cosine to zero).

    The linear layers, which everything behind them depends on, learn at a tenth of the rate.

    It yields one record a step: step, epoch, loss (nats) and lr; each epoch's last one also train_nll (the epoch's mean) and held_out_nll.
    The flow ends with the weights of the epoch that was best on the held-out points.
    Raises UserError if the loss stops being a number.
    """
    device = flow.base_mean.device
    held_out = held_out.to(device)
    steps = epochs * steps_per_epoch
    groups = parameter_groups(flow, lr)
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
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
            optimiser.zero_grad(set_to_none=False)  # the gradients, too, are views of one vector
            loss.backward()
            torch.nn.utils.clip_grad_norm_([vector for group in groups for vector in group["params"]], 1.0)
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


def parameter_groups(flow: Flow, lr: float) -> list[dict]:
    """What torch's optimisers take: the couplings' parameters with learning rate lr, the linear layers' with lr / 10; one vector each."""
    linear = [parameter for layer in flow.transforms if isinstance(layer, InvertibleLinear) for parameter in layer.parameters()]
    others = [parameter for layer in flow.transforms if not isinstance(layer, InvertibleLinear) for parameter in layer.parameters()]
    groups = [{"params": others, "lr": lr}, {"params": linear, "lr": lr / 10}]
    return [{**group, "params": [as_one_vector(group["params"])]} for group in groups if group["params"]]


def as_one_vector(parameters: list[nn.Parameter]) -> nn.Parameter:
    """Makes the parameters, and their gradients, views of one vector: then clipping, Adam and zeroing are one operation, not one for each.

    The parameters keep their shapes, values and names; what writes to them in place, as `load_state_dict` does, writes to the vector, and
    the other way round. Zero the gradients with `set_to_none=False`: set to None they would be views no longer.
    """
    vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    vector.grad = torch.zeros_like(vector)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, values, grads in zip(parameters, vector.detach().split(sizes), vector.grad.split(sizes)):
        parameter.data, parameter.grad = values.view(parameter.shape), grads.view(parameter.shape)
    return vector


@dataclass
class Fit:
    """A trained flow, a record an epoch, and its figures of merit."""

    flow: Flow
    history: list[dict]
    figures: dict


def fit(name: str, points: Points, seed: int, args) -> Fit:
    """Builds, trains and evaluates one architecture, with a progress bar."""
    torch.manual_seed(seed)
    start, sample = time.perf_counter(), points.draw(10_000)
    flow = ARCHITECTURES[name](2, args.layers, (args.hidden, args.hidden), mean=sample.mean(0), std=sample.std(0)).to(args.device)
    steps, history = args.epochs * args.steps_per_epoch, []
    options = dict(epochs=args.epochs, steps_per_epoch=args.steps_per_epoch, batch=args.batch, lr=args.lr)
    with tqdm(total=steps, desc=TITLES[name], unit="step", mininterval=1) as bar:
        for record in train(flow, points.draw, points.held_out, **options):
            bar.update()
            if "held_out_nll" in record:
                history.append(record)
                bar.set_postfix_str(f"held-out NLL {record['held_out_nll']:.4f}", refresh=False)
    seconds, parameters = round(time.perf_counter() - start, 1), sum(p.numel() for p in flow.parameters())
    return Fit(flow, history, evaluate(flow, points) | {"seconds": seconds, "parameters": parameters, "steps": steps})


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


@torch.no_grad()
def conditionals(flows: dict[str, Flow], truth: NoisyCurves | Checkerboard, known: list[tuple[int, float]]) -> list[dict]:
    """Inpainting in 2-D: for each (index, value) of a known coordinate the distribution of the missing one, by the truth and by each flow.

    A case holds `known`, `missing` (its index), `grid` and `exact` (the density on it), `modes` and, per flow, `density`, `kl` (exact to
    flow, nats), `map` (the value that maximises the flow's density, by `map_inpaint`) and `mass`: the flow's share in the
    exact density's mode that it stands on.
    """
    cases = []
    for index, value in known:
        low, high = truth.bounds(8)[2 * (1 - index) : 2 * (1 - index) + 2]
        missing = torch.linspace(low, high, 4001, dtype=torch.float64)
        points = torch.full((len(missing), 2), value, dtype=torch.float64)
        points[:, 1 - index] = missing
        log_exact = normalised(truth.log_prob(points), missing)
        exact = log_exact.exp()
        case = {
            "known": value,
            "missing": 1 - index,
            "grid": missing.numpy(),
            "exact": exact.numpy(),
            "modes": len(modes(exact)),
            "flows": {},
        }
        for name, flow in flows.items():
            device, dtype = flow.base_mean.device, flow.base_mean.dtype
            log_density = normalised(flow.log_prob(points.to(device, dtype)).double().cpu(), missing)
            density = log_density.exp()
            starts = points[::400].to(device, dtype)[:, None]  # eleven of them, all over the range
            x, mask = starts[0], torch.arange(2, device=device)[None] == 1 - index
            found = map_inpaint(flow.log_prob, x, mask, starts, steps=300, lr=0.05, final_lr=1e-4, unit_interval=False)
            at = found.x[0, 1 - index].item()
            kl = torch.trapezoid(torch.where(exact > 0, exact * (log_exact - log_density), 0.0), missing).item()
            mode = mode_around(exact, missing, at)
            mass = torch.trapezoid(density[mode], missing[mode]).item()
            case["flows"][name] = {"density": density.numpy(), "kl": kl, "map": at, "mass": mass}
        cases.append(case)
    return cases


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--data",
        metavar="SHAPE|FILE",
        default="moons",
        help=f"{', '.join(SHAPES)}, or a .npy or .csv file with two columns (default %(default)s)",
    )
    parser.add_argument(
        "--noise", type=number(float, 0.02, 1), default=0.05, help="standard deviation of the shapes' noise (default %(default)s)"
    )
    parser.add_argument("--layers", type=number(int, 2), default=28, help="couplings per flow (default %(default)s)")
    parser.add_argument(
        "--hidden", type=number(int, 1), default=32, help="width of each coupling's two hidden layers (default %(default)s)"
    )
    parser.add_argument("--epochs", type=number(int, 1), default=60, help="default %(default)s")
    parser.add_argument("--steps-per-epoch", type=number(int, 1), default=50, help="batches per epoch (default %(default)s)")
    parser.add_argument("--batch", type=number(int, 1), default=512, help="points per batch (default %(default)s)")
    parser.add_argument("--lr", type=number(float, 1e-8), default=5e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument(
        "--seeds", type=number(int, 1), default=1, metavar="N", help="train with N seeds, from --seed on; the figures are the first one's"
    )
    parser.add_common_flags(checkpoint="folder for the two checkpoints (default checkpoints/)")
    parser.set_defaults(checkpoint=ROOT / "checkpoints")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    start, runs = time.perf_counter(), []
    for seed in range(args.seed, args.seed + args.seeds):
        points = make_points(args.data, args.noise, seed)
        require_writable(args.checkpoint, args.figures)
        fits = {name: fit(name, points, seed, args) for name in ARCHITECTURES}
        runs.append({name: fitted.figures for name, fitted in fits.items()})
        print_table(runs[-1], points.floor, seed)
        if seed == args.seed:
            save(fits, points, args)
    spread = summarise(runs)
    if args.seeds > 1:
        print_spread(spread, args.seeds)
    if args.metrics:
        metrics = {"data": points.name, "floor": points.floor, "models": runs[0], "seeds": args.seeds, "spread": spread}
        write_metrics(args.metrics, metrics, seconds=time.perf_counter() - start, device=args.device, seed=args.seed)


def save(fits: dict[str, Fit], points: Points, args) -> None:
    """Writes checkpoints and figures: those that need the truth only where it is known, the conditional one only for the moons."""
    flows, histories, figures = ({name: getattr(fitted, part) for name, fitted in fits.items()} for part in ("flow", "history", "figures"))
    for name, flow in flows.items():
        save_flow(flow, args.checkpoint / f"{points.name}_{name}.pt", step=figures[name]["steps"], seed=args.seed, metrics=figures[name])
    prefix = "" if points.name == "moons" else f"{points.name}_"
    truth_nll = -points.truth.log_prob(points.held_out).mean().item() if points.truth else None
    save_figure(loss_figure(histories, points.floor, truth_nll), args.figures, f"{prefix}loss_plot.png")
    save_figure(density_figure(flows, points, figures, args.seed), args.figures, f"{prefix}density_contours.png")
    save_figure(layers_figure(flows, points, seed=args.seed), args.figures, f"{points.name}_layers.png")
    if points.truth is not None:
        save_figure(error_figure(flows, points), args.figures, f"{prefix}density_error.png")
    if points.name == "moons":
        cases = conditionals(flows, points.truth, [(0, -0.8), (0, 0.4), (1, 0.25)])
        save_figure(conditional_figure(cases, points), args.figures, "moons_conditional.png")


def print_table(figures: dict[str, dict], floor: float | None, seed: int) -> None:
    """One run's final figures, a row a model."""
    print(f"seed {seed}" + (f"; entropy of the truth, the floor of any test NLL: {floor:.4f} nats" if floor is not None else ""))
    for name, row in figures.items():
        kl = f"   KL to the truth {row['kl']:.4f} ± {row['kl_se']:.4f}" if "kl" in row else ""
        nll = f"test NLL {row['test_nll']:.4f} ± {row['test_nll_se']:.4f}"
        print(f"{TITLES[name]:25} {nll}{kl}   {row['seconds']:.0f} s   {row['parameters']:,} parameters")


def summarise(runs: list[dict[str, dict]]) -> dict[str, dict]:
    """Per model and figure: mean, median, min and max over the seeds."""
    keys = [key for key in ("test_nll", "kl", "seconds") if key in next(iter(runs[0].values()))]
    values = {name: {key: [run[name][key] for run in runs] for key in keys} for name in runs[0]}
    statistics = {"mean": np.mean, "median": np.median, "min": np.min, "max": np.max}
    return {
        name: {key: {word: float(of(column)) for word, of in statistics.items()} for key, column in columns.items()}
        for name, columns in values.items()
    }


def print_spread(spread: dict[str, dict], seeds: int) -> None:
    """The seeds' mean and range, a row a model."""
    print(f"over {seeds} seeds:")
    for name, columns in spread.items():
        print(
            f"{TITLES[name]:25} "
            + "   ".join(f"{key} {row['mean']:.4f} ({row['min']:.4f} to {row['max']:.4f})" for key, row in columns.items())
        )


if __name__ == "__main__":
    main()
