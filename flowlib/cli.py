"""The command line: a parser with the flags that mean the same everywhere, and errors in one line."""

import argparse
import contextlib
import sys
from pathlib import Path

import torch

from flowlib.files import ROOT, UserError


@contextlib.contextmanager
def one_line_errors():
    """Turns a `UserError` into one line on stderr and exit status 2, as argparse does with a bad flag; Ctrl-C into status 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that prints the script's docstring as its help and a bad flag as one line."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def add_common_flags(self, checkpoint: str) -> None:
        """Adds --seed, --device, --checkpoint, --figures and --metrics; `checkpoint` describes that flag."""
        self.add_argument("--seed", type=int, default=0, help="seed of every random number (default %(default)s)")
        self.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one")
        self.add_argument("--checkpoint", type=Path, metavar="PATH", help=checkpoint)
        self.add_argument(
            "--figures", type=Path, metavar="FOLDER", default=ROOT / "figures", help="where the figures go (default figures/)"
        )
        self.add_argument("--metrics", type=Path, metavar="FILE", help="also write the final figures of this run as JSON")


def number(kind: type, low: float, high: float = float("inf")):
    """A type for argparse: an int or a float in [low, high]."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high}]")
        return value

    parse.__name__ = kind.__name__
    return parse


def device(text: str) -> torch.device:
    """A type for argparse: a device that this machine has."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(text)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be used here: {str(error).splitlines()[0]}") from None
    return chosen
