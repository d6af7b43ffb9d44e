"""Compares the two flows of this repository with their peers on two moons, every model given the same CPU time.

    python benchmarks/moons_peers.py

trains each model on one thread on the same batches, in standardised coordinates, and as train_moons.py trains ours: Adam, gradient
norm clipped at 1, linear layers at a tenth of the rate, warm-up and cosine. The schedule follows the CPU time spent, so it ends when
the time does. Each model's learning rate is first chosen on held-out points, ours no differently.
The density is known exactly: kl_grid = ∫ p (log p - log p_model) and mass = ∫ p_model, both over a fine grid, must come to 0 and 1.

Needs    the peers in requirements-dev.txt: normflows, nflows and zuko
Writes   benchmarks/results/moons.json after each finished row; run again with the same settings it goes on where it stopped
Takes    about 45 minutes on one CPU core: 2 noise levels x 6 models x (3 rates x 10 s + 3 seeds x 60 s)
"""

import importlib.util
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from statistics import median

import normflows as nf
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script's own folder is on the path, the modules lie one above
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, UserError, provenance, versions, write_atomically
from flowlib.grids import grid
from flowlib.toy2d import TwoMoons
from flows2d import Standardise, permutation_flow, realnvp
from train_moons import as_one_vector

LAYERS, HIDDEN, BATCH, WARM_UP = 12, 64, 512, 0.02
OUR_LAYERS, OUR_HIDDEN = 28, 32  # as in train_moons.py
LEARNING_RATES = (1e-3, 2e-3, 5e-3)
LINEAR_LAYERS = ("InvertibleLinear", "LULinearPermute", "LULinear")  # ours, normflows' and nflows'
EXTRA_PEERS = ("nflows", "zuko")  # not needed elsewhere here, so imported only where they are built

# ---------------------------------------------------------------- data


class Data:
    """Two moons as every model meets them; training, held-out and test points come from separate generators."""

    def __init__(self, sigma: float, seed: int):
        self.truth = TwoMoons(sigma)
        self.seed = seed
        self.pool = self.truth.sample(1_000_000, torch.Generator().manual_seed(seed))
        self.held_out = self.truth.sample(20_000, torch.Generator().manual_seed(1000 + seed))
        self.test = self.truth.sample(20_000, torch.Generator().manual_seed(2000 + seed))
        self.mean, self.std = self.pool.mean(0), self.pool.std(0)

    def batches(self) -> Iterator[Tensor]:
        """Endless training batches, the same ones each time."""
        generator = torch.Generator().manual_seed(3000 + self.seed)
        while True:
            yield self.pool[torch.randint(len(self.pool), (BATCH,), generator=generator)]


# ---------------------------------------------------------------- models


class Standardised(nn.Module):
    """A peer that models y = (x - mean) / std, as a density of x: log p(x) = log q(y) - Σ log std."""

    def __init__(self, peer: nn.Module, log_prob: Callable[[Tensor], Tensor], sample: Callable[[int], Tensor], mean: Tensor, std: Tensor):
        super().__init__()
        self.peer, self.peer_log_prob, self.peer_sample = peer, log_prob, sample
        self.standardise = Standardise(mean, std)

    def log_prob(self, x: Tensor) -> Tensor:
        y, log_det = self.standardise(x)
        return self.peer_log_prob(y) + log_det

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.standardise.inverse(self.peer_sample(n))[0]


Builder = Callable[[Tensor, Tensor], nn.Module]  # (mean, std) of the data -> a model of it


def normflows_peer(layers: int, make_layer: Callable[[], list[nn.Module]]) -> Builder:
    """That many layers on a standard normal base, fixed as everybody's here; nothing is built yet."""

    def build(mean: Tensor, std: Tensor) -> Standardised:
        base = nf.distributions.DiagGaussian(2, trainable=False)
        flow = nf.NormalizingFlow(base, [module for _ in range(layers) for module in make_layer()])
        return Standardised(flow, flow.log_prob, lambda n: flow.sample(n)[0], mean, std)

    return build


def normflows_coupling() -> nn.Module:
    """An affine coupling as in normflows' examples: scales exp(s), unbounded."""
    return nf.flows.AffineCouplingBlock(nf.nets.MLP([1, HIDDEN, HIDDEN, 2], init_zeros=True))


def normflows_spline() -> nn.Module:
    """A rational-quadratic spline coupling with normflows' defaults."""
    return nf.flows.CoupledRationalQuadraticSpline(2, num_blocks=2, num_hidden_channels=HIDDEN)


def zuko_nsf(mean: Tensor, std: Tensor) -> Standardised:
    """zuko's neural spline flow with its defaults: autoregressive."""
    import zuko

    flow = zuko.flows.NSF(2, transforms=3, hidden_features=(HIDDEN, HIDDEN))
    return Standardised(flow, lambda y: flow().log_prob(y), lambda n: flow().sample((n,)), mean, std)


def nflows_affine(mean: Tensor, std: Tensor) -> Standardised:
    """nflows' affine couplings; their masks alternate because its linear layer starts as the identity."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import AffineCouplingTransform, CompositeTransform, LULinear

    warnings.filterwarnings("ignore", message="torch.triangular_solve is deprecated")  # nflows still samples with it
    transforms = []
    for i in range(LAYERS):
        mask = (torch.arange(2) + i) % 2
        transforms += [AffineCouplingTransform(mask, lambda n, out: ResidualNet(n, out, hidden_features=HIDDEN, num_blocks=2)), LULinear(2)]
    flow = Flow(CompositeTransform(transforms), StandardNormal([2]))
    return Standardised(flow, flow.log_prob, flow.sample, mean, std)


MODELS: dict[str, Builder] = {
    "realnvp (ours)": lambda mean, std: realnvp(2, OUR_LAYERS, (OUR_HIDDEN, OUR_HIDDEN), mean, std),
    "permutation (ours)": lambda mean, std: permutation_flow(2, OUR_LAYERS, (OUR_HIDDEN, OUR_HIDDEN), mean, std),
    "zuko NSF": zuko_nsf,
    "normflows affine + LU": normflows_peer(LAYERS, lambda: [normflows_coupling(), nf.flows.LULinearPermute(2)]),
    "normflows coupling RQS": normflows_peer(8, lambda: [normflows_spline(), nf.flows.LULinearPermute(2)]),
    "nflows affine + LU": nflows_affine,
}
# Ours and normflows' with the same widths and depth, for the cost of a training step.
STEP_TIME_PAIRS: dict[str, tuple[Builder, Builder]] = {
    "affine + linear": (lambda mean, std: realnvp(2, LAYERS, (HIDDEN, HIDDEN), mean, std), MODELS["normflows affine + LU"]),
    "affine + permutation": (
        lambda mean, std: permutation_flow(2, LAYERS, (HIDDEN, HIDDEN), mean, std),
        normflows_peer(LAYERS, lambda: [normflows_coupling(), nf.flows.Permute(2, mode="swap")]),
    ),
}

# ---------------------------------------------------------------- train


def make_optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """train_moons.py's optimiser for whichever model, on one vector a group; its `share` of the rate is a tenth for linear flow layers."""
    layers = [module for module in model.modules() if type(module).__name__ in LINEAR_LAYERS]
    linear = {id(parameter): parameter for layer in layers for parameter in layer.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in linear]
    groups = [{"params": others, "share": 1.0}, {"params": list(linear.values()), "share": 0.1}]
    groups = [{**group, "params": [as_one_vector(group["params"])]} for group in groups if group["params"]]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)


def take_step(model: nn.Module, optimiser: torch.optim.Optimizer, batch: Tensor) -> bool:
    """One step down the mean negative log-likelihood; False, and nothing changed, if the loss or the gradient is not finite."""
    loss = -model.log_prob(batch).mean()
    optimiser.zero_grad(set_to_none=False)
    loss.backward()
    norm = nn.utils.clip_grad_norm_([vector for group in optimiser.param_groups for vector in group["params"]], 1.0)
    if not math.isfinite((loss + norm).item()):
        return False
    optimiser.step()
    return True


def train(build: Builder, data: Data, lr: float, seconds: float) -> tuple[nn.Module, dict]:
    """Builds a model and trains it for that much CPU time; returns it and what was done (`steps` counts the skipped ones too)."""
    torch.manual_seed(data.seed)
    model = build(data.mean, data.std)
    optimiser = make_optimiser(model)
    batches, steps, skipped = data.batches(), 0, 0
    start = time.process_time()
    while (done := (time.process_time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * lr * min(1, done / WARM_UP) * (1 + math.cos(math.pi * done)) / 2
        skipped += not take_step(model, optimiser, next(batches))
        steps += 1
    return model, {"steps": steps, "skipped_steps": skipped, "cpu_seconds": time.process_time() - start}


def try_learning_rates(name: str, data: Data, seconds: float) -> list[dict]:
    """A short run with each learning rate; the one with the lowest held-out NLL is marked as chosen."""
    rows = []
    for lr in LEARNING_RATES:
        model, record = train(MODELS[name], data, lr, seconds)
        with torch.no_grad():
            nll = -model.log_prob(data.held_out).mean()
        rows.append({"model": name, "sigma": data.truth.noise, "lr": lr, "held_out_nll": finite(nll), **record})
    best = min(rows, key=lambda row: math.inf if row["held_out_nll"] is None else row["held_out_nll"])
    return [{**row, "chosen": row is best} for row in rows]


# ---------------------------------------------------------------- evaluate


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> dict:
    """The figures in nats; None where the model's density is not finite at all of the points that a figure is made of."""
    truth, dtype = data.truth, data.test.dtype
    log_p = model.log_prob(data.test).double()
    gap = truth.log_prob(data.test) - log_p
    where, area = grid(truth.bounds(6.5), truth.noise / 3)
    log_truth, on_grid = truth.log_prob(where), model.log_prob(where.to(dtype)).double()
    angle = torch.arange(64, dtype=dtype) * (2 * math.pi / 64)
    far_away = model.log_prob(1e3 * torch.stack([angle.cos(), angle.sin()], dim=1))
    return {
        "test_nll": finite(-log_p.mean()),
        "kl_paired": finite(gap.mean()),
        "kl_paired_se": finite(gap.std() / math.sqrt(len(gap))),
        "kl_grid": finite((log_truth.exp() * (log_truth - on_grid)).sum() * area),
        "mass": finite(on_grid.exp().sum() * area),
        "non_finite": int((~on_grid.isfinite()).sum() + (~far_away.isfinite()).sum()),
    }


def finite(value: Tensor | float) -> float | None:
    """The number as JSON can hold it: None if it is infinite or not a number."""
    return float(value) if math.isfinite(value) else None


def samples_per_second(model: nn.Module, batch: int = 10_000, repeats: int = 10) -> float | None:
    """Sampling speed, points per second of CPU time; None if the model cannot sample."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        try:
            model.sample(batch)
        except AssertionError:  # normflows' splines assert what rounding can break
            return None
        times.append(time.process_time() - start)
    return batch / median(times)


def step_times(data: Data, rounds: int, steps: int = 50) -> list[dict]:
    """Milliseconds of CPU time a training step takes, ours and normflows' in turn: medians over the rounds, also of each round's ratio."""
    torch.manual_seed(data.seed)
    rows = []
    for pair, builders in STEP_TIME_PAIRS.items():
        models = [build(data.mean, data.std) for build in builders]
        optimisers = [make_optimiser(model) for model in models]  # at Adam's own rate of 0.001
        batches, times = data.batches(), ([], [])
        for i in range(rounds + 1):
            for model, optimiser, taken in zip(models, optimisers, times):
                drawn = [next(batches) for _ in range(steps if i else 3)]
                start = time.process_time()
                for batch in drawn:
                    take_step(model, optimiser, batch)
                if i:  # the first round only warms up
                    taken.append((time.process_time() - start) / steps * 1000)
        ratio = median(normflows / ours for ours, normflows in zip(*times))
        rows.append({"pair": pair, "ours_ms": median(times[0]), "normflows_ms": median(times[1]), "ratio": ratio, "rounds": rounds})
    return rows


# ---------------------------------------------------------------- results


def load_results(path: Path, about: dict) -> dict:
    """What an earlier run with the same settings wrote, or nothing yet; raises UserError if the file is another's."""
    results = {"about": about, "rows": [], "step_times": [], "learning_rates": []}
    if not path.is_file():
        return results
    try:
        earlier = json.loads(path.read_text())
        other = [key for key in about if key not in ("date", "command") and earlier["about"][key] != about[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a results file of this script: move it away or choose another --output") from None
    if other:
        raise UserError(f"{path} was measured with other {', '.join(other)}: move it away or choose another --output")
    return results | earlier | {"about": about}


def save_results(results: dict, path: Path) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n"))


def find(rows: list[dict], **wanted) -> list[dict]:
    """The rows in which all of these columns have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def print_table(results: dict, sigmas: list[float], models: list[str]) -> None:
    """Per noise level and model the median over the seeds, and (lowest-highest); inf where a figure is not finite."""
    columns = {"kl_grid": (24, ".4f"), "kl_paired": (24, ".4f"), "steps": (18, ".0f"), "ms_per_step": (18, ".1f")}
    columns |= {"mass": (24, ".4f"), "non_finite": (18, ".0f"), "samples_per_second": (24, ".0f")}
    for sigma in sigmas:
        print(f"\nsigma = {sigma}".ljust(24) + "".join(f"{column:>{width}}" for column, (width, _) in columns.items()))
        for name in models:
            line = f"{name:23}"
            for column, (width, form) in columns.items():
                values = [math.inf if row[column] is None else row[column] for row in find(results["rows"], model=name, sigma=sigma)]
                line += f"{f'{median(values):{form}} ({min(values):{form}}-{max(values):{form}})':>{width}}"
            print(line)
    for row in results["step_times"]:
        print(f"{row['pair']}: a step takes {row['ours_ms']:.2f} ms, normflows {row['normflows_ms']:.2f} ms; ratio {row['ratio']:.2f}")


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--seconds", type=number(float, 0.01), default=60, help="CPU time for training each model (default %(default)s)")
    parser.add_argument("--lr-seconds", type=number(float, 0.01), default=10, help="CPU time for each learning rate (default %(default)s)")
    parser.add_argument("--seeds", type=number(int, 1), default=3, help="how many; they are 0, 1, ... (default %(default)s)")
    parser.add_argument("--sigmas", type=number(float, 0.02, 1), nargs="+", default=[0.05, 0.1], help="noise levels (default 0.05 0.1)")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS), metavar="NAME", help=f"some of: {'; '.join(MODELS)}")
    parser.add_argument("--rounds", type=number(int, 1), default=7, help="rounds of 50 steps to time (default %(default)s)")
    parser.add_argument("--core", type=number(int, 0), default=0, help="the CPU core to run on (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", default=ROOT / "benchmarks/results/moons.json", help="default %(default)s")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    if missing := [name for name in EXTRA_PEERS if importlib.util.find_spec(name) is None]:
        raise UserError(f"not installed: {', '.join(missing)}; run pip install -r requirements-dev.txt")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # Linux only
        try:
            os.sched_setaffinity(0, {args.core})
        except OSError:
            raise UserError(f"--core {args.core} cannot be used here: take one of {sorted(os.sched_getaffinity(0))}") from None
    about = {
        **provenance(["python", "benchmarks/moons_peers.py", *(sys.argv[1:] if argv is None else argv)], torch.device("cpu")),
        "versions": versions() | {name: metadata.version(name) for name in EXTRA_PEERS},
        "seconds": args.seconds,
        "lr_seconds": args.lr_seconds,
        "batch": BATCH,
    }
    results = load_results(args.output, about)

    for seed in range(args.seeds):
        for sigma in args.sigmas:
            data = Data(sigma, seed)
            for name in args.models:
                if find(results["rows"], model=name, sigma=sigma, seed=seed):
                    continue
                if not find(results["learning_rates"], model=name, sigma=sigma):  # so at the first seed, 0
                    results["learning_rates"] += try_learning_rates(name, data, args.lr_seconds)
                    save_results(results, args.output)
                lr = find(results["learning_rates"], model=name, sigma=sigma, chosen=True)[0]["lr"]
                model, record = train(MODELS[name], data, lr, args.seconds)
                row = {"model": name, "sigma": sigma, "seed": seed, "lr": lr, "parameters": sum(p.numel() for p in model.parameters())}
                row |= record | {"ms_per_step": record["cpu_seconds"] / record["steps"] * 1000}
                row |= evaluate(model, data) | {"samples_per_second": samples_per_second(model)}
                results["rows"].append(row)
                save_results(results, args.output)
                print(f"seed {seed}  sigma {sigma}  {name:25} lr {lr}  {row['steps']} steps  kl_grid {row['kl_grid']}", flush=True)
    if not find(results["step_times"], rounds=args.rounds):
        results["step_times"] = step_times(Data(args.sigmas[0], 0), args.rounds)
        save_results(results, args.output)
    print_table(results, args.sigmas, args.models)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
