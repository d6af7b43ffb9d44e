"""Are our two 2-D flows closer to the truth than their peers, at equal CPU time?

    python -m benchmarks.moons_peers

trains each model on one thread on the same batches of two moons, in standardized
coordinates, with the batches and the schedule of train_moons.py: clipping, linear
layers at a share of the rate, warm-up and cosine. It takes as many steps as fit into
the CPU time by its median step, and the steps of all models are timed in turn. So no
model has less because the machine was busy while it trained. Each model's optimizer
(Adam alone, or Muon for the hidden matrices as in train_moons.py) and learning rate,
ours too, are first chosen on held-out points. The density is known exactly, so both KL
divergences come from quadrature, as in train_moons.py. `mass` is the integral of the
model's density around the moons; it is 1 for a normalized density.

Needs    the peers in requirements-dev.txt: normflows, nflows and zuko
Writes   benchmarks/results/moons.json after each finished row. Run again with the same
         settings, it goes on where it stopped
Takes    about 90 minutes on one CPU core: for each of 2 noise levels and 11 models,
         4 recipes of 12 s and 3 seeds of 60 s
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
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.about import add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, middle, table
from benchmarks.moons_models import LINEAR_LAYERS, MODELS, Standardized
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import UserError, versions, write_json
from flowlib.grids import evaluate, finite, grid, kl_divergences
from flowlib.points import NOISE, make_shape
from flowlib.rng import rng
from flowlib.tables.fit import Training
from flowlib.toy2d import TwoMoons
from train_moons import CLIP, cosine, make_optimizers

BATCH = 512
WARM_UP = 0.02  # share of the time
# Optimizers and learning rates to choose from.
RECIPES = (("Adam", 3e-3), ("Adam", 8e-3), ("Muon", 2e-2), ("Muon", 5e-2))
ROUNDS = 25  # of timing
WARM_UP_STEPS = 3
EXTRA_PEERS = ("nflows", "zuko")  # imported only where they are built


class Data:
    """Two moons as every model meets them: training, held-out and test points."""

    def __init__(self, sigma: float, seed: int):
        self.truth = TwoMoons(sigma)
        self.seed = seed
        self.held_out = self.truth.sample(20_000, rng(seed, "moons held-out"))
        self.test = self.truth.sample(20_000, rng(seed, "moons test"))
        sample = self.truth.sample(1_000_000, rng(seed, "moons train"))
        self.mean = sample.mean(0)
        self.std = sample.std(0)

    def batches(self) -> Iterator[Tensor]:
        """Endless training batches as train_moons.py has them, the same each time."""
        draw = make_shape("moons", self.truth.noise, self.seed).draw
        while True:
            yield draw(BATCH)


# ---------------------------------------------------------------- train


def optimizers_for(
    model: nn.Module, recipe: tuple[str, float]
) -> list[torch.optim.Optimizer]:
    """train_moons.py's, at this rate: "Muon" with Adam beside it, or "Adam" alone."""
    optimizer, lr = recipe
    layers = model.modules()
    linear = [layer for layer in layers if type(layer).__name__ in LINEAR_LAYERS]
    training = Training(lr=lr, muon=optimizer == "Muon")
    base = model.learned_base if isinstance(model, Standardized) else model.base
    return make_optimizers(model, nn.ModuleList(linear), base, training)


def take_step(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], batch: Tensor
) -> bool:
    """One training step. False, and nothing changed, if something is not finite."""
    loss = -model.log_prob(batch).mean()
    model.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    if not math.isfinite((loss + norm).item()):
        return False

    for optimizer in optimizers:
        optimizer.step()
    return True


def time_in_turn(
    models: list[nn.Module],
    recipes: list[tuple[str, float]],
    batches: Iterator[Tensor],
    rounds: int,
    steps: int,
) -> list[list[float]]:
    """CPU time of a training step in ms: for each model, one number a round."""
    optimizers = [optimizers_for(*pair) for pair in zip(models, recipes)]
    times: list[list[float]] = [[] for _ in models]

    for i in range(rounds + 1):
        for model, its_optimizers, taken in zip(models, optimizers, times):
            drawn = [next(batches) for _ in range(steps if i else WARM_UP_STEPS)]
            start = time.process_time()
            for batch in drawn:
                take_step(model, its_optimizers, batch)

            # The first round only warms up.
            if i:
                taken.append((time.process_time() - start) / steps * 1000)
    return times


def time_steps(names: list[str], data: Data) -> list[dict]:
    """The median CPU time of a step, a row for each model and optimizer."""
    torch.manual_seed(data.seed)
    optimizers = dict(RECIPES)  # each once
    pairs = [(name, optimizer) for name in names for optimizer in optimizers]
    models = [MODELS[name](data.mean, data.std) for name, _ in pairs]
    recipes = [(optimizer, 1e-3) for _, optimizer in pairs]
    times = time_in_turn(models, recipes, data.batches(), ROUNDS, steps=10)
    return [
        {"model": name, "optimizer": optimizer, "ms_per_step": median(taken)}
        for (name, optimizer), taken in zip(pairs, times)
    ]


def train_model(
    name: str,
    data: Data,
    recipe: tuple[str, float],
    times: list[dict],
    seconds: float,
) -> tuple[nn.Module, dict]:
    """A model trained for that much CPU time, by the `times` of its steps; a record."""
    optimizer, lr = recipe
    torch.manual_seed(data.seed)
    model = MODELS[name](data.mean, data.std)
    optimizers = optimizers_for(model, recipe)
    groups = [group for one in optimizers for group in one.param_groups]
    highest = [group["lr"] for group in groups]
    batches = data.batches()
    ms_per_step = find(times, model=name, optimizer=optimizer)[0]["ms_per_step"]
    steps = round(1000 * seconds / ms_per_step)
    skipped = 0

    start = time.process_time()
    for step in range(steps):
        share = min(1, (step + 1) / (WARM_UP * steps)) * cosine(step / steps)
        for group, rate in zip(groups, highest):
            group["lr"] = share * rate
        skipped += not take_step(model, optimizers, next(batches))

    record = {"model": name, "sigma": data.truth.noise, "optimizer": optimizer}
    record |= {"lr": lr, "ms_per_step": ms_per_step}
    record |= {"steps": steps, "skipped_steps": skipped}
    record["cpu_seconds"] = time.process_time() - start
    return model, record


def try_recipes(name: str, data: Data, times: list[dict], seconds: float) -> list[dict]:
    """A short run with each recipe; that of the lowest held-out NLL is `chosen`."""
    rows = []
    for recipe in RECIPES:
        model, record = train_model(name, data, recipe, times, seconds)
        nll = finite(-evaluate(model.log_prob, data.held_out, data.held_out).mean())
        rows.append({"held_out_nll": nll} | record)

    values = [finite_or_worst(row["held_out_nll"]) for row in rows]
    best = values.index(min(values))
    return [{**row, "chosen": i == best} for i, row in enumerate(rows)]


def finite_or_worst(value: float | None) -> float:
    """The value, or infinity where it was not finite."""
    return math.inf if value is None else value


# ---------------------------------------------------------------- evaluate


def evaluate_model(model: nn.Module, data: Data) -> dict:
    """The metrics in nats; None where one is not finite or there is no inverse."""
    truth = data.truth
    like = data.test
    points, area = grid(truth.bounds(6.5), truth.noise / 3)
    log_q = evaluate(model.log_prob, points, like)

    # A circle of radius 1000: is the density finite far from the data?
    angle = torch.arange(64, dtype=torch.float64) * (2 * math.pi / 64)
    far_away = 1e3 * torch.stack([angle.cos(), angle.sin()], dim=1)
    log_q_far = evaluate(model.log_prob, far_away, like)

    def inverse(z: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return model.inverse(z)
        except AssertionError:  # normflows' splines assert what rounding can break
            return z * math.nan, z[:, 0] * math.nan

    truth_flow, flow_truth = kl_divergences(
        truth, model.log_prob, inverse, model.base, like
    )
    return {
        "test_nll": finite(-evaluate(model.log_prob, data.test, like).mean()),
        "kl_truth_flow": truth_flow,
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


class CallCounter(TorchDispatchMode):
    """Counts the operations that torch carries out while it is active."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def calls_per_step(model: nn.Module, data: Data, recipe: tuple[str, float]) -> int:
    """How many operations of torch's one training step takes."""
    optimizers = optimizers_for(model, recipe)
    batch = next(data.batches())
    take_step(model, optimizers, batch)  # the first one also makes the averages
    with CallCounter() as counter:
        take_step(model, optimizers, batch)
    return counter.calls


def measure_row(
    name: str,
    data: Data,
    recipe: tuple[str, float],
    times: list[dict],
    seconds: float,
) -> dict:
    """Trains and evaluates one model: a row of the results."""
    model, record = train_model(name, data, recipe, times, seconds)
    row = {"seed": data.seed} | record
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    row |= evaluate_model(model, data)
    row["samples_per_second"] = samples_per_second(model)
    # Last, for it trains on.
    row["calls_per_step"] = calls_per_step(model, data, recipe)
    return row


# ---------------------------------------------------------------- results


def load_earlier(path: Path, about: dict) -> dict:
    """What an earlier run with the same settings wrote, or nothing yet.

    Raises UserError if the file is another's.
    """
    results = {"about": about, "rows": [], "recipes": [], "times": []}
    if not path.is_file():
        return results

    remedy = "move it away or choose another --output"
    try:
        earlier = json.loads(path.read_text())
        keys = about.keys() - {"date", "command"}
        other = sorted(key for key in keys if earlier["about"][key] != about[key])
    except (OSError, ValueError, KeyError, TypeError):
        message = f"{path} is not a results file of this script: {remedy}"
        raise UserError(message) from None
    if other:
        raise UserError(f"{path} was measured with other {', '.join(other)}: {remedy}")
    return results | earlier | {"about": about}


def find(rows: list[dict], **wanted) -> list[dict]:
    """The rows in which all of these columns have these values."""
    return [row for row in rows if wanted.items() <= row.items()]


def nats(value: float) -> str:
    """A divergence as the table has it; what has exploded needs no decimals."""
    return f"{value:.4f}" if value < 100 else f"{value:.0e}"


def moons_table() -> str:
    """Ours and the peers at equal CPU time: medians over the seeds, the KL's range."""
    moons = load("moons")
    groups: dict[tuple, list[dict]] = {}
    for row in moons["rows"]:
        groups.setdefault((row["sigma"], row["model"]), []).append(row)

    def column(key: tuple, name: str) -> list:
        return [row[name] for row in groups[key] if row[name] is not None]

    def spread(values: list) -> str:
        if not values:
            return ""
        low, mid, high = map(nats, (min(values), middle(values), max(values)))
        return mid if len(values) == 1 else f"{mid} ({low} to {high})"

    def cells(key: tuple) -> list[str]:
        kl = column(key, "kl_truth_flow")
        reverse = column(key, "kl_flow_truth")
        mass = column(key, "mass")
        counts = ("non_finite", "samples_per_second")

        return [
            f"{key[0]}",
            key[1],
            groups[key][0]["optimizer"],
            spread(kl) or "not finite",
            spread(reverse) or "-",
            f"{middle(column(key, 'ms_per_step')):.1f}",
            f"{middle(column(key, 'calls_per_step')):,.0f}",
            f"{middle(column(key, 'steps')):,.0f}",
            f"{middle(column(key, 'parameters')):,.0f}",
            f"{middle(mass):.4f}" if mass else "not finite",
            *(f"{middle(column(key, name)):,.0f}" for name in counts),
        ]

    def by_noise_and_kl(key: tuple) -> tuple:
        return key[0], middle(column(key, "kl_truth_flow"))

    order = sorted(groups, key=by_noise_and_kl)
    header = ["σ", "model", "optimizer", "KL(truth ‖ flow), nats, over the seeds"]
    header += ["KL(flow ‖ truth)", "ms a step", "operations a step", "steps"]
    header += ["parameters", "mass", "non-finite", "samples/s"]

    about = moons["about"]
    peers = ("normflows", *EXTRA_PEERS)
    names = ", ".join(f"{name} {about['versions'][name]}" for name in peers)
    each = f"{about['seconds']:.0f} CPU seconds each"
    rows = [cells(key) for key in order]
    return table(header, rows) + measured_on(about, each, names)


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    seconds = number(float, 0.01)
    add("--seconds", type=seconds, default=60, help="CPU time for each model")
    add("--recipe-seconds", type=seconds, default=12, help="CPU time for each recipe")
    add("--seeds", type=number(int, 1), default=3, help="how many seeds: 0, 1, ...")
    noise = dict(type=number(float, 0.02, 1), nargs="+", default=[0.05, 0.1])
    add("--sigmas", **noise, help="noise levels of the moons")
    names = dict(choices=MODELS, nargs="+", default=list(MODELS), metavar="NAME")
    add("--models", **names, help="models to train, by their names in the table")
    add("--core", type=number(int, 0), default=0, help="CPU core to run on")
    add_output_flag(parser, "moons")
    return parser.parse_args(argv)


def use_one_core(core: int) -> None:
    """Computes on one thread, on this core. Raises UserError if it is not ours.

    Numbers below 1e-38 become 0, as in `flowlib.cli.threads`.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):  # Linux only
        return

    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        cores = sorted(os.sched_getaffinity(0))
        message = f"--core {core} cannot be used here: take one of {cores}"
        raise UserError(message) from None


def require_peers() -> None:
    """Raises UserError if a peer is not installed."""
    missing = [name for name in EXTRA_PEERS if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "run pip install -r requirements-dev.txt"
        raise UserError(f"not installed: {', '.join(missing)}; {remedy}")


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    require_peers()
    use_one_core(args.core)
    command = command_of("moons_peers", *(sys.argv[1:] if argv is None else argv))
    about = provenance(command, torch.device("cpu"))
    about["versions"] = versions()
    about["versions"] |= {name: metadata.version(name) for name in EXTRA_PEERS}
    about |= {"seconds": args.seconds, "recipe_seconds": args.recipe_seconds}
    about |= {"batch": BATCH, "recipes": [list(recipe) for recipe in RECIPES]}
    results = load_earlier(args.output, about)
    rows = results["rows"]
    tried = results["recipes"]
    times = results["times"]
    new = [name for name in args.models if not find(times, model=name)]
    if new:
        times += time_steps(new, Data(NOISE, 0))
        write_json(args.output, results)

    for seed in range(args.seeds):
        for sigma in args.sigmas:
            data = Data(sigma, seed)
            for name in args.models:
                if find(rows, model=name, sigma=sigma, seed=seed):
                    continue

                # Recipes are chosen once, so at the first seed, 0.
                if not find(tried, model=name, sigma=sigma):
                    tried += try_recipes(name, data, times, args.recipe_seconds)
                    write_json(args.output, results)
                best = find(tried, model=name, sigma=sigma, chosen=True)[0]
                recipe = (best["optimizer"], best["lr"])

                row = measure_row(name, data, recipe, times, args.seconds)
                rows.append(row)
                write_json(args.output, results)
                where = f"seed {seed}  sigma {sigma}  {name:25} {recipe}"
                kl = f"KL {row['kl_truth_flow']}, {row['kl_flow_truth']}"
                print(f"{where}  {kl}", flush=True)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
