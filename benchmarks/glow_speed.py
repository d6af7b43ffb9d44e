"""How fast the Glow trains, scores and samples, beside normflows' own Glow.

    python benchmarks/glow_speed.py

Both have as many blocks and channels, and see as many images a step. Ours does more
work in a block: residual networks with one 3x3 convolution more, splines, a split
prior. What that is worth per second, glow_bits.py measures. The models take turns,
round by round, so that a machine whose pace changes is fair to all. Memory is what the
peak of a process grows by per image when the batch of a training step grows from 64 to
256.

Writes   benchmarks/results/glow_speed.json
Takes    about two minutes on 2 CPU cores; nothing else should run meanwhile
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn
from tqdm import tqdm

# so that flowlib is found
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.about import provenance
from benchmarks.stock_glow import StockGlow
from flowlib.cli import Parser, device, number, one_line_errors
from flowlib.files import ROOT, write_json
from flowlib.images.glow import Glow, precision_for
from flowlib.muon import muon_and_adam

SHAPE, LEVELS = (1, 28, 28), 256
MODELS = {
    "normflows, as it comes": (StockGlow, "fp32"),
    "ours, fp32": (Glow, "fp32"),
    "ours, bf16": (Glow, "bf16"),
}
SMALL, LARGE = 64, 256  # images a step, for the memory

# ---------------------------------------------------------------- measure


def build_model(name: str, blocks: int, hidden: int, where: torch.device) -> nn.Module:
    """One of MODELS, initialized on made-up images."""
    kind, precision = MODELS[name]
    torch.manual_seed(0)
    model = kind(SHAPE, LEVELS, blocks=blocks, hidden=hidden)
    model.initialize(make_images(512))
    if kind is Glow:
        model.set_precision(precision_for(precision, where))
    return model.to(where)


def make_images(n: int) -> torch.Tensor:
    """n images of noise, a fifth of it ink, as in MNIST: speed does not depend on the content."""
    ink = torch.rand(n, *SHAPE) < 0.2
    return (torch.rand(n, *SHAPE) * 255 * ink).to(torch.uint8)


def make_tasks(
    model: nn.Module, batch: int, where: torch.device
) -> dict[str, Callable[[], object]]:
    """What is timed, each on `batch` images."""
    images = make_images(batch).to(where)
    v = (images + 0.5) / LEVELS
    if isinstance(model, StockGlow):
        optimizers = [torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)]
    else:
        optimizers = muon_and_adam(model, lr=1e-3)

    def train() -> float:
        loss = model(images, torch.randn(images.shape, device=where)).mean()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    def score() -> None:
        with torch.no_grad():
            model.log_prob(v)

    return {"train": train, "score": score, "sample": lambda: model.sample(batch)}


def seconds_for(task: Callable[[], object], repeats: int, where: torch.device) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    for _ in range(repeats):
        task()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return (time.perf_counter() - start) / repeats


def peak_memory(
    name: str, blocks: int, hidden: int, batch: int, where: torch.device
) -> float:
    """The peak MiB of this process after training steps; run it in a process of its own."""
    train = make_tasks(build_model(name, blocks, hidden, where), batch, where)["train"]
    for _ in range(2):
        train()
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_per_image(name: str, args) -> float:
    """What the peak grows by per image, MiB."""
    peaks = []
    for batch in (SMALL, LARGE):
        size = (name, args.blocks, args.hidden, batch, args.device)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(peak_memory, size))
    return (peaks[1] - peaks[0]) / (LARGE - SMALL)


def time_models(
    models: dict[str, nn.Module], args
) -> dict[str, dict[str, list[float]]]:
    """The seconds of each task of each model, one number a round; a first round only warms up."""
    timed = {
        name: make_tasks(model, args.batch, args.device)
        for name, model in models.items()
    }
    seconds = {name: {task: [] for task in tasks} for name, tasks in timed.items()}
    for i in tqdm(range(args.rounds + 1), unit="round"):
        for name, tasks in timed.items():
            for task, call in tasks.items():
                taken = seconds_for(call, args.repeats if i else 2, args.device)
                if i:
                    seconds[name][task].append(taken)
    return seconds


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, results = parser.add_argument, ROOT / "benchmarks/results/glow_speed.json"
    add("--blocks", type=number(int, 1), default=6, help="Glow blocks per level (6)")
    add(
        "--hidden",
        type=number(int, 1),
        default=64,
        help="channels inside each network (64)",
    )
    add("--batch", type=number(int, 2), default=64, help="images a step (64)")
    add("--rounds", type=number(int, 1), default=7, help="of all models in turn (7)")
    add("--repeats", type=number(int, 1), default=5, help="calls a round (5)")
    add("--device", type=device, default="cpu", help="cpu, cuda, cuda:1 ... (cpu)")
    add("--output", type=Path, metavar="FILE", default=results, help="the results file")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    size = (args.blocks, args.hidden, args.device)
    models = {name: build_model(name, *size) for name in MODELS}
    seconds = time_models(models, args)
    stock, rows = seconds["normflows, as it comes"]["train"], []
    for name, model in models.items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        row = {"model": name, "parameters": parameters}
        for task, taken in seconds[name].items():
            row[f"{task}_images_per_second"] = args.batch / median(taken)
        ratios = [theirs / ours for theirs, ours in zip(stock, seconds[name]["train"])]
        row["train_ratio"] = median(ratios)
        row["memory_mib_per_image"] = memory_per_image(name, args)
        rows.append(row)
        texts = [
            f"{value:,.2f}" if isinstance(value, float) else value
            for value in row.values()
        ]
        print("   ".join(f"{key} {text}" for key, text in zip(row, texts)))
    command = [
        "python",
        "benchmarks/glow_speed.py",
        *(sys.argv[1:] if argv is None else argv),
    ]
    about = provenance(command, args.device)
    for name in ("blocks", "hidden", "batch", "rounds", "repeats"):
        about[name] = getattr(args, name)
    write_json(args.output, {"about": about, "rows": rows})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
