"""How fast the Glow trains, scores and samples, beside normflows' own Glow.

    python -m benchmarks.glow_speed

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
from statistics import median

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.about import add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, table
from benchmarks.stock_glow import StockGlow
from flowlib.cli import Parser, device, number, one_line_errors
from flowlib.files import write_json
from flowlib.images.glow import Glow, precision_for
from flowlib.muon import muon_and_adam

SHAPE = (1, 28, 28)
LEVELS = 256
MODELS = {
    "normflows, as it comes": (StockGlow, "fp32"),
    "ours, fp32": (Glow, "fp32"),
    "ours, bf16": (Glow, "bf16"),
}

# Images a step, for the memory.
SMALL = 64
LARGE = 256

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
    """n images of noise, a fifth of it ink, as in MNIST: speed knows no content."""
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
    """The peak MiB of this process after training steps: run it in a fresh process."""
    model = build_model(name, blocks, hidden, where)
    train = make_tasks(model, batch, where)["train"]
    for _ in range(2):
        train()

    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024  # Linux counts in KiB


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
    """The seconds of each task of each model, one number a round.

    A first round only warms up.
    """
    timed = {}
    for name, model in models.items():
        timed[name] = make_tasks(model, args.batch, args.device)
    seconds = {name: {task: [] for task in tasks} for name, tasks in timed.items()}

    for i in tqdm(range(args.rounds + 1), unit="round"):
        for name, tasks in timed.items():
            for task, call in tasks.items():
                repeats = args.repeats if i else 2
                taken = seconds_for(call, repeats, args.device)
                if i:
                    seconds[name][task].append(taken)
    return seconds


def make_rows(models: dict[str, nn.Module], args) -> list[dict]:
    """A row for each model: its speed at each task, and its memory."""
    seconds = time_models(models, args)
    stock = seconds["normflows, as it comes"]["train"]
    rows = []
    for name, model in models.items():
        row = {
            "model": name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        for task, taken in seconds[name].items():
            row[f"{task}_images_per_second"] = args.batch / median(taken)

        ratios = [theirs / ours for theirs, ours in zip(stock, seconds[name]["train"])]
        row["train_ratio"] = median(ratios)
        row["memory_mib_per_image"] = memory_per_image(name, args)
        rows.append(row)
    return rows


# ---------------------------------------------------------------- table


def glow_speed_table() -> str:
    """Images per second and memory, beside normflows' Glow of the same size."""
    results = load("glow_speed")
    about = results["about"]
    rows = []
    for row in results["rows"]:
        cells = [row["model"], f"{row['parameters']:,}"]
        for task in ("train", "score", "sample"):
            cells.append(f"{row[f'{task}_images_per_second']:,.0f}")
        cells.append(f"{row['train_ratio']:.2f}")
        cells.append(f"{row['memory_mib_per_image']:.1f} MiB")
        rows.append(cells)

    header = ["model", "parameters", "trained, images/s", "scored, images/s"]
    header += ["sampled, images/s", "training, ratio", "memory an image"]
    blocks = f"{about['blocks']} blocks a level"
    sizes = f"{blocks}, {about['hidden']} channels, batch {about['batch']}"
    return table(header, rows) + measured_on(about, sizes)


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--blocks", type=number(int, 1), default=6, help="Glow blocks per level")
    add("--hidden", type=number(int, 1), default=64, help="channels in each network")
    add("--batch", type=number(int, 2), default=64, help="images a step")
    add("--rounds", type=number(int, 1), default=7, help="rounds of all models in turn")
    add("--repeats", type=number(int, 1), default=5, help="calls a round")
    add("--device", type=device, default="cpu", help="device: cpu, cuda, cuda:1 ...")
    add_output_flag(parser, "glow_speed")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    size = (args.blocks, args.hidden, args.device)
    models = {name: build_model(name, *size) for name in MODELS}
    rows = make_rows(models, args)
    for row in rows:
        cells = [f"{v:,.2f}" if isinstance(v, float) else v for v in row.values()]
        print("   ".join(f"{key} {cell}" for key, cell in zip(row, cells)))

    command = command_of("glow_speed", *(sys.argv[1:] if argv is None else argv))
    about = provenance(command, args.device)
    for name in ("blocks", "hidden", "batch", "rounds", "repeats"):
        about[name] = getattr(args, name)
    write_json(args.output, {"about": about, "rows": rows})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
