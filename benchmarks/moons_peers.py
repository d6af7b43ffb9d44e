"""Compares the two flows of this repository with their peers on two moons, at equal CPU time.

    python benchmarks/moons_peers.py

trains each model on one thread on the same batches, in standardized coordinates, with
the optimizer of train_moons.py: Adam, gradient norm clipped at 1, linear layers at a
tenth of the rate, warm-up and cosine. The schedule follows the CPU time spent, so it
ends when the time does. Each model's learning rate, ours too, is first chosen on
held-out points. The density is known exactly, so both KL divergences come from
quadrature, as in train_moons.py. `mass` is the integral of the model's density around
the moons; it is 1 for a normalized density.

Needs    the peers in requirements-dev.txt: normflows, nflows and zuko
Writes   benchmarks/results/moons.json after each finished row. Run again with the same settings, it
         goes on where it stopped
Takes    about an hour on one CPU core: for each of 2 noise levels and 6 models, 3 rates of 10 s and
         3 seeds of 60 s
"""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

# A script's own folder is on the path; the modules lie one folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.about import provenance
from benchmarks.moons_models import LINEAR_LAYERS, MODELS, Builder
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, UserError, versions, write_json
from flowlib.grids import evaluate, finite, grid, kl_flow_truth, kl_truth_flow
from flowlib.rng import rng
from flowlib.toy2d import TwoMoons

BATCH, WARM_UP = 512, 0.02
LEARNING_RATES = (1e-3, 2e-3, 5e-3)
EXTRA_PEERS = ("nflows", "zuko")  # imported only where they are built


class Data:
    """Two moons as every model meets them: training, held-out and test points."""

    def __init__(self, sigma: float, seed: int):
        self.truth, self.seed = TwoMoons(sigma), seed
        self.pool = self.truth.sample(1_000_000, rng(seed, "moons train"))
        self.held_out = self.truth.sample(20_000, rng(seed, "moons held-out"))
        self.test = self.truth.sample(20_000, rng(seed, "moons test"))
        self.mean, self.std = self.pool.mean(0), self.pool.std(0)

    def batches(self) -> Iterator[Tensor]:
        """Endless training batches, the same ones each time."""
        generator = rng(self.seed, "moons batches")
        while True:
            yield self.pool[
                torch.randint(len(self.pool), (BATCH,), generator=generator)
            ]


# ---------------------------------------------------------------- train


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """train_moons.py's optimizer for any model; linear layers' `share` of the rate is a tenth."""
    layers = [
        module for module in model.modules() if type(module).__name__ in LINEAR_LAYERS
    ]
    linear = {
        id(parameter): parameter for layer in layers for parameter in layer.parameters()
    }
    others = [
        parameter for parameter in model.parameters() if id(parameter) not in linear
    ]
    groups = [(others, 1.0), (list(linear.values()), 0.1)]
    groups = [{"params": group, "share": share} for group, share in groups if group]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor
) -> bool:
    """One training step. False, and nothing changed, if the loss or a gradient is not finite."""
    loss = -model.log_prob(batch).mean()
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not math.isfinite((loss + norm).item()):
        return False
    optimizer.step()
    return True


def train_model(
    build: Builder, data: Data, lr: float, seconds: float
) -> tuple[nn.Module, dict]:
    """A model trained for that much CPU time, and a record; `steps` counts skipped ones too."""
    torch.manual_seed(data.seed)
    model = build(data.mean, data.std)
    optimizer = make_optimizer(model)
    batches, steps, skipped, start = data.batches(), 0, 0, time.process_time()
    while (done := (time.process_time() - start) / seconds) < 1:
        rate = lr * min(1, done / WARM_UP) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * rate
        skipped += not take_step(model, optimizer, next(batches))
        steps += 1
    spent = time.process_time() - start
    return model, {"steps": steps, "skipped_steps": skipped, "cpu_seconds": spent}


def try_learning_rates(name: str, data: Data, seconds: float) -> list[dict]:
    """A short run with each learning rate; that of the lowest held-out NLL is `chosen`."""
    rows = []
    for lr in LEARNING_RATES:
        model, record = train_model(MODELS[name], data, lr, seconds)
        nll = finite(-evaluate(model.log_prob, data.held_out, data.held_out).mean())
        row = {"model": name, "sigma": data.truth.noise, "lr": lr, "held_out_nll": nll}
        rows.append(row | record)
    values = [
        math.inf if row["held_out_nll"] is None else row["held_out_nll"] for row in rows
    ]
    return [
        {**row, "chosen": i == values.index(min(values))} for i, row in enumerate(rows)
    ]


# ---------------------------------------------------------------- evaluate


def evaluate_model(model: nn.Module, data: Data) -> dict:
    """The metrics in nats; None where one is not finite or the model cannot be inverted."""
    truth, like = data.truth, data.test
    points, area = grid(truth.bounds(6.5), truth.noise / 3)
    log_q = evaluate(model.log_prob, points, like)
    angle = torch.arange(64, dtype=torch.float64) * (2 * math.pi / 64)
    far_away = 1e3 * torch.stack([angle.cos(), angle.sin()], dim=1)
    log_q_far = evaluate(model.log_prob, far_away, like)
    try:
        flow_truth = kl_flow_truth(truth, model.inverse, like)
    except AssertionError:  # normflows' splines assert what rounding can break
        flow_truth = None
    return {
        "test_nll": finite(-evaluate(model.log_prob, data.test, like).mean()),
        "kl_truth_flow": kl_truth_flow(truth, model.log_prob, like),
        "kl_flow_truth": flow_truth,
        "mass": finite(log_q.exp().sum() * area),
        "non_finite": int((~torch.cat([log_q, log_q_far]).isfinite()).sum()),
    }


def samples_per_second(
    model: nn.Module, batch: int = 10_000, repeats: int = 10
) -> float | None:
    """Points per second of CPU time; None if the model cannot sample."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        try:
            model.sample(batch)
        except AssertionError:  # as in `evaluate_model`
            return None
        times.append(time.process_time() - start)
    return batch / median(times)


# ---------------------------------------------------------------- results


def load_results(path: Path, about: dict) -> dict:
    """What an earlier run with the same settings wrote, or nothing yet.

    Raises UserError if the file is another's.
    """
    results = {"about": about, "rows": [], "learning_rates": []}
    if not path.is_file():
        return results
    remedy = "move it away or choose another --output"
    try:
        earlier = json.loads(path.read_text())
        keys = about.keys() - {"date", "command"}
        other = sorted(key for key in keys if earlier["about"][key] != about[key])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a results file of this script: {remedy}"
        ) from None
    if other:
        raise UserError(f"{path} was measured with other {', '.join(other)}: {remedy}")
    return results | earlier | {"about": about}


def find(rows: list[dict], **wanted) -> list[dict]:
    """The rows in which all of these columns have these values."""
    return [
        row for row in rows if all(row[key] == value for key, value in wanted.items())
    ]


def print_table(results: dict, sigmas: list[float], models: list[str]) -> None:
    """Per noise level and model the median over the seeds, and (lowest-highest)."""
    columns = {
        "kl_truth_flow": ".4f",
        "kl_flow_truth": ".4f",
        "mass": ".4f",
        "non_finite": ".0f",
    }
    columns |= {"steps": ".0f", "ms_per_step": ".1f", "samples_per_second": ".0f"}
    for sigma in sigmas:
        print(
            f"\nsigma = {sigma}".ljust(24)
            + "".join(f"{column:>24}" for column in columns)
        )
        for name in models:
            rows, cells = find(results["rows"], model=name, sigma=sigma), []
            for column, form in columns.items():
                values = [
                    math.inf if row[column] is None else row[column] for row in rows
                ]
                middle, low, high = (
                    format(f(values), form) for f in (median, min, max)
                )
                cells.append(f"{f'{middle} ({low}-{high})':>24}")
            print(f"{name:23}" + "".join(cells))


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--seconds",
        type=number(float, 0.01),
        default=60,
        help="CPU time for each model (60)",
    )
    add(
        "--lr-seconds",
        type=number(float, 0.01),
        default=10,
        help="and for each rate (10)",
    )
    add(
        "--seeds",
        type=number(int, 1),
        default=3,
        help="how many; they are 0, 1, ... (3)",
    )
    noise = dict(type=number(float, 0.02, 1), nargs="+", default=[0.05, 0.1])
    add("--sigmas", **noise, help="noise levels (0.05 0.1)")
    names = dict(choices=MODELS, nargs="+", default=list(MODELS), metavar="NAME")
    add("--models", **names, help=f"some of: {'; '.join(MODELS)}")
    add("--core", type=number(int, 0), default=0, help="the CPU core to run on (0)")
    results = ROOT / "benchmarks/results/moons.json"
    add(
        "--output",
        type=Path,
        metavar="FILE",
        default=results,
        help="(benchmarks/results/...)",
    )
    return parser.parse_args(argv)


def use_one_core(core: int) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # Linux only
        try:
            os.sched_setaffinity(0, {core})
        except OSError:
            cores = sorted(os.sched_getaffinity(0))
            raise UserError(
                f"--core {core} cannot be used here: take one of {cores}"
            ) from None


def measure_row(name: str, data: Data, lr: float, seconds: float) -> dict:
    """Trains and evaluates one model: a row of the results."""
    model, record = train_model(MODELS[name], data, lr, seconds)
    row = {"model": name, "sigma": data.truth.noise, "seed": data.seed, "lr": lr}
    row |= record | {
        "parameters": sum(parameter.numel() for parameter in model.parameters())
    }
    row["ms_per_step"] = record["cpu_seconds"] / record["steps"] * 1000
    return (
        row
        | evaluate_model(model, data)
        | {"samples_per_second": samples_per_second(model)}
    )


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    if missing := [
        name for name in EXTRA_PEERS if importlib.util.find_spec(name) is None
    ]:
        remedy = "run pip install -r requirements-dev.txt"
        raise UserError(f"not installed: {', '.join(missing)}; {remedy}")
    use_one_core(args.core)
    command = [
        "python",
        "benchmarks/moons_peers.py",
        *(sys.argv[1:] if argv is None else argv),
    ]
    about = provenance(command, torch.device("cpu"))
    about["versions"] = versions() | {
        name: metadata.version(name) for name in EXTRA_PEERS
    }
    about |= {"seconds": args.seconds, "lr_seconds": args.lr_seconds, "batch": BATCH}
    results = load_results(args.output, about)
    rows, rates = results["rows"], results["learning_rates"]
    for seed in range(args.seeds):
        for sigma in args.sigmas:
            data = Data(sigma, seed)
            for name in args.models:
                if find(rows, model=name, sigma=sigma, seed=seed):
                    continue
                if not find(rates, model=name, sigma=sigma):  # so at the first seed, 0
                    rates += try_learning_rates(name, data, args.lr_seconds)
                    write_json(args.output, results)
                lr = find(rates, model=name, sigma=sigma, chosen=True)[0]["lr"]
                rows.append(measure_row(name, data, lr, args.seconds))
                write_json(args.output, results)
                kl = f"KL {rows[-1]['kl_truth_flow']}, {rows[-1]['kl_flow_truth']}"
                print(
                    f"seed {seed}  sigma {sigma}  {name:25} lr {lr}  {kl}", flush=True
                )
    print_table(results, args.sigmas, args.models)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
