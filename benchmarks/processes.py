"""What is a second process worth? The same command with one process and with two.

    python -m benchmarks.processes --data-dir DATA

A Glow is trained for some steps, and holes are filled in pictures. Each runs three
times: in one process on one core, in one process with two threads, and in two processes
on two cores that talk over the loopback device. It also measures how much the results
differ: the weights, the test bits/dim, and the filled pictures in grey levels.

Writes   benchmarks/results/processes.json
Takes    ten minutes on two CPU cores; nothing else should run meanwhile
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.about import add_data_flag, add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, UserError, write_json
from flowlib.images.datasets import load_images
from flowlib.images.glow import load_glow
from flowlib.images.user_images import save_grey

WAYS = {"one": (1, 1), "threads": (1, 2), "two": (2, 1)}  # processes, threads of each


def run(script: str, flags: list, processes: int, threads: int) -> None:
    """Runs a script to its end; UserError if it fails."""
    command = [sys.executable, ROOT / script, *flags]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone"]
        command[1:1] = [*launch, "--nproc-per-node", processes]

    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([str(part) for part in command], env=environment)
    if done.returncode:
        raise UserError(f"{script} ended with status {done.returncode}")


def read_metric(metrics: Path, name: str) -> float:
    """What a run wrote of itself."""
    return json.loads(metrics.read_text())[name]


def time_training(data_dir: Path, steps: int, folder: Path) -> dict:
    """A row: seconds of the steps alone, without the evaluation."""
    seconds = {}
    weights = {}
    bits = {}
    for way, size in WAYS.items():
        place = folder / way
        metrics = place / "metrics.json"
        flags = ["--data-dir", data_dir, "--steps", steps, "--precision", "fp32"]
        flags += ["--checkpoint", place / "glow.pt", "--figures", place]
        run("train_glow_mnist.py", [*flags, "--metrics", metrics], *size)

        seconds[way] = read_metric(metrics, "training_seconds")
        bits[way] = read_metric(metrics, "test_bits_per_dim")
        glow = load_glow(place / "glow.pt")
        weights[way] = torch.cat([value.flatten() for value in glow.parameters()])

    return {
        "what": f"train a Glow, {steps} steps",
        "difference": (weights["two"] - weights["one"]).abs().max().item(),
        "bits_difference": abs(bits["two"] - bits["one"]),
        **seconds,
    }


def time_filling(data_dir: Path, count: int, folder: Path) -> dict:
    """A row: seconds of the whole command that fills holes in so many pictures."""
    pictures = folder / "pictures"
    images = load_images("mnist", data_dir, download=False).held_out[:count]
    for i, image in enumerate(images):
        save_grey(pictures / f"{i:02}.png", image / 255)

    seconds = {}
    filled = {}
    for way, size in WAYS.items():
        output = folder / way
        metrics = output / "metrics.json"
        flags = ["--image", pictures, "--mask", "square:14", "--data-dir", data_dir]
        run("inpaint.py", [*flags, "--output", output, "--metrics", metrics], *size)

        seconds[way] = read_metric(metrics, "seconds")
        paths = sorted(output.glob("*_fill_*.png"))
        filled[way] = np.stack([np.asarray(Image.open(p), dtype=int) for p in paths])

    difference = int(np.abs(filled["two"] - filled["one"]).max())
    return {"what": f"fill {count} pictures", "difference": difference, **seconds}


# ---------------------------------------------------------------- table


def processes_table() -> str:
    """One process, one with two threads, and two."""
    results = load("processes")
    rows = []
    for row in results["rows"]:
        seconds = [f"{row[way]:.0f} s" for way in WAYS]
        rows.append([row["what"], *seconds, f"{row['one'] / row['two']:.2f}"])

    header = ["what", "1 process, 1 thread", "1 process, 2 threads", "2 processes"]
    return table([*header, "gain"], rows) + measured_on(results["about"])


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_data_flag(parser)
    add("--steps", type=number(int, 1), default=100, help="training steps")
    add("--pictures", type=number(int, 2), default=8, help="pictures to fill")
    add_output_flag(parser, "processes")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rows = []
    for measure, count in ((time_training, args.steps), (time_filling, args.pictures)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(args.data_dir, count, Path(folder)))
        print("   ".join(f"{key} {value}" for key, value in rows[-1].items()))

    about = provenance(command_of("processes"), torch.device("cpu"))
    processor = about["hardware"].partition(",")[0]
    about["hardware"] = f"{processor}, {os.cpu_count()} cores"
    write_json(args.output, {"about": about, "rows": rows})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
