"""What the benchmarks share: flags, where results are, what they say of their run."""

import argparse
import shlex
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from flowlib.files import ROOT, hardware, versions

RESULTS = ROOT / "benchmarks/results"


def command_of(name: str, *flags: object) -> list[str]:
    """The command that runs the benchmark of this name."""
    return ["python", "-m", f"benchmarks.{name}", *map(str, flags)]


def provenance(command: Sequence[str], device: torch.device) -> dict[str, Any]:
    """A results file's account of its run: date, command, hardware, versions."""
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(command),
        "hardware": hardware(device),
        "versions": versions(),
    }


def add_output_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds --output, by default the committed results file of this name."""
    options = dict(type=Path, metavar="FILE", default=RESULTS / f"{name}.json")
    parser.add_argument("--output", **options, help="results file to write")


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --data-dir."""
    options = dict(type=Path, metavar="FOLDER", default=ROOT / "data")
    parser.add_argument("--data-dir", **options, help="folder in which MNIST lies")


def add_figures_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --figures."""
    options = dict(type=Path, metavar="FOLDER", default=ROOT / "figures")
    parser.add_argument("--figures", **options, help="folder of the figures")


def print_rows(rows: Sequence[dict]) -> None:
    """Prints flat rows, each in a line: its columns' names and values."""
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else v for v in row.values()]
        print("   ".join(f"{key} {cell}" for key, cell in zip(row, cells)))
