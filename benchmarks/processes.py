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
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    command = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        ROOT / script,
        *flags,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([str(part) for part in command], env=environment)
    if done.returncode:
        raise UserError(f"{script} ended with status {done.returncode}")


def read_metric(metrics: Path, name: str) -> float:
    """What a run wrote of itself."""
    return json.loads(metrics.read_text())[name]


def time_training(args, folder: Path) -> dict:
    """A row: seconds of the steps alone, without the evaluation."""
    seconds, weights, bits = {}, {}, {}
    for way, size in WAYS.items():
        place, metrics = folder / way / "glow.pt", folder / way / "metrics.json"
        flags = [
            "--data-dir",
            args.data_dir,
            "--steps",
            args.steps,
            "--precision",
            "fp32",
        ]
        flags += [
            "--checkpoint",
            place,
            "--figures",
            place.parent,
            "--metrics",
            metrics,
        ]
        run("train_glow_mnist.py", flags, *size)
        seconds[way] = read_metric(metrics, "training_seconds")
        bits[way] = read_metric(metrics, "test_bits_per_dim")
        weights[way] = torch.cat([p.flatten() for p in load_glow(place).parameters()])
    difference = (weights["two"] - weights["one"]).abs().max().item()
    row = {"what": f"train a Glow, {args.steps} steps", "difference": difference}
    return row | {"bits_difference": abs(bits["two"] - bits["one"])} | seconds


def time_filling(args, folder: Path) -> dict:
    """A row: seconds of the whole command."""
    pictures, seconds, filled = folder / "pictures", {}, {}
    images = load_images("mnist", args.data_dir, download=False).held_out[
        : args.pictures
    ]
    for i, image in enumerate(images):
        save_grey(pictures / f"{i:02}.png", image / 255)
    for way, size in WAYS.items():
        output, metrics = folder / way, folder / way / "metrics.json"
        flags = [
            "--image",
            pictures,
            "--mask",
            "square:14",
            "--data-dir",
            args.data_dir,
        ]
        run("inpaint.py", [*flags, "--output", output, "--metrics", metrics], *size)
        seconds[way] = read_metric(metrics, "seconds")
        files = [
            output / f"{i:02}_sample_{k}.png"
            for i in range(len(images))
            for k in range(1, 9)
        ]
        filled[way] = np.stack(
            [np.asarray(Image.open(file), dtype=int) for file in files]
        )
    difference = int(np.abs(filled["two"] - filled["one"]).max())
    return {
        "what": f"fill {args.pictures} pictures",
        "difference": difference,
    } | seconds


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
def main(argv=None) -> None:
    args = parse_args(argv)
    rows = []
    for measure in (time_training, time_filling):
        with tempfile.TemporaryDirectory() as folder:
            row = measure(args, Path(folder))
        print("   ".join(f"{key} {value}" for key, value in row.items()))
        rows.append(row)

    about = provenance(command_of("processes"), torch.device("cpu"))
    processor = about["hardware"].partition(",")[0]
    about["hardware"] = f"{processor}, {os.cpu_count()} cores"
    write_json(args.output, {"about": about, "rows": rows})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
