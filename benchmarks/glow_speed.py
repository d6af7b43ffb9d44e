"""How fast the Glow trains, scores and samples, beside normflows' own with the same number of blocks, channels and images a step.

    python benchmarks/glow_speed.py

takes turns, round by round, so that a machine whose pace changes is fair to all. Ours does more work a block (residual networks with
one 3x3 convolution more, splines, a split prior): what that is worth per second, glow_bits.py measures.
Memory is what a process's peak grows by per image when a training step's batch grows from 64 to 256.

Writes   benchmarks/results/glow_speed.json
Takes    about two minutes on 2 CPU cores; nothing else should run meanwhile
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script's own folder is on the path, the modules lie one above
from benchmarks.stock_glow import StockGlow
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, provenance, write_atomically
from flowlib.images.glow import Glow, precision_for

SHAPE, LEVELS = (1, 28, 28), 256
MODELS = {"normflows, as it comes": (StockGlow, "fp32"), "ours, fp32": (Glow, "fp32"), "ours, bf16": (Glow, "bf16")}
SMALL, LARGE = 64, 256  # images a step, for the memory

# ---------------------------------------------------------------- measure


def build(name: str, blocks: int, hidden: int, device: torch.device) -> nn.Module:
    """One of MODELS, initialised on made-up images with MNIST's share of ink."""
    kind, precision = MODELS[name]
    torch.manual_seed(0)
    model = kind(SHAPE, LEVELS, blocks=blocks, hidden=hidden)
    model.initialise(made_up(512))
    if kind is Glow:
        model.set_precision(precision_for(precision, device))
    return model.to(device)


def made_up(n: int) -> torch.Tensor:
    """n images of noise, a fifth of it ink: speed does not depend on what is in them."""
    return (torch.rand(n, *SHAPE) * 255 * (torch.rand(n, *SHAPE) < 0.2)).to(torch.uint8)


def tasks(model: nn.Module, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, each on `batch` images."""
    images = made_up(batch).to(device)
    v = ((images + 0.5) / LEVELS).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def train() -> float:
        loss = model(images, torch.randn(images.shape, device=device)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.item()

    def score() -> None:
        with torch.no_grad():
            model.log_prob(v)

    return {"train": train, "score": score, "sample": lambda: model.sample(batch)}


def seconds_for(task: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    for _ in range(repeats):
        task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def peak_memory(name: str, blocks: int, hidden: int, batch: int, device: torch.device) -> float:
    """MiB that a process needs at most while it trains on so many images a step; in a fresh process, whose peak is its own."""
    train = tasks(build(name, blocks, hidden, device), batch, device)["train"]
    for _ in range(2):
        train()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--blocks", type=number(int, 1), default=6, help="GlowBlocks per level (default %(default)s)")
    parser.add_argument("--hidden", type=number(int, 1), default=64, help="channels inside each coupling's network (default %(default)s)")
    parser.add_argument("--batch", type=number(int, 2), default=64, help="images a step (default %(default)s)")
    parser.add_argument("--rounds", type=number(int, 1), default=7, help="of all models in turn (default %(default)s)")
    parser.add_argument("--repeats", type=number(int, 1), default=5, help="calls a round (default %(default)s)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="default %(default)s")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", default=ROOT / "benchmarks/results/glow_speed.json", help="default %(default)s"
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    models = {name: build(name, args.blocks, args.hidden, args.device) for name in MODELS}
    timed = {name: tasks(model, args.batch, args.device) for name, model in models.items()}
    seconds = {name: {task: [] for task in timed[name]} for name in MODELS}
    for i in range(args.rounds + 1):
        for name in MODELS:
            for task, call in timed[name].items():
                taken = seconds_for(call, args.repeats if i else 2, args.device)
                if i:  # the first round only warms up
                    seconds[name][task].append(taken)
    stock = seconds["normflows, as it comes"]["train"]
    rows = []
    for name, model in models.items():
        row = {"model": name, "parameters": sum(p.numel() for p in model.parameters())}
        row |= {f"{task}_images_per_second": args.batch / median(taken) for task, taken in seconds[name].items()}
        row["train_ratio"] = median(theirs / ours for theirs, ours in zip(stock, seconds[name]["train"]))
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            small, large = (pool.apply(peak_memory, (name, args.blocks, args.hidden, batch, args.device), {}) for batch in (SMALL, LARGE))
        row["memory_mib_per_image"] = (large - small) / (LARGE - SMALL)
        rows.append(row)
        print("   ".join(f"{key} {value:,.2f}" if isinstance(value, float) else str(value) for key, value in row.items()))
    about = {
        **provenance(["python", "benchmarks/glow_speed.py", *(sys.argv[1:] if argv is None else argv)], args.device),
        **{name: getattr(args, name) for name in ("blocks", "hidden", "batch", "rounds", "repeats")},
    }
    write_atomically(
        args.output, lambda temporary: temporary.write_text(json.dumps({"about": about, "rows": rows}, indent=1, allow_nan=False) + "\n")
    )
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
