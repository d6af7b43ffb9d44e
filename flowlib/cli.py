"""The command line: a parser with the flags that mean the same everywhere, and one-line errors."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from flowlib.files import ROOT, UserError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a script as a shell expects it, with one line on stderr and never a traceback.

    Exit status 2 for a `UserError`, 130 for Ctrl-C, 143 for SIGTERM. Files are whole in all cases.
    """

    def terminate(*_):
        print("terminated", file=sys.stderr)
        raise SystemExit(143)

    for stream in (sys.stdout, sys.stderr):  # a file's name need not be UTF-8
        if hasattr(stream, "reconfigure"):  # notebooks and tests have streams of their own
            stream.reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help is the script's docstring, and whose errors are one line."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def refuse(self, args: argparse.Namespace, when: str, *names: str) -> None:
        """Ends with an error if one of these flags was given, since it has no meaning `when`."""
        for name in names:
            if getattr(args, name) != self.get_default(name):
                self.error(f"--{name.replace('_', '-')} has no meaning {when}")

    def add_common_flags(self, checkpoint: str) -> None:
        """Adds --seed, --device, --checkpoint (whose help is given), --figures and --metrics."""
        add, figures = self.add_argument, ROOT / "figures"
        add("--seed", type=number(int, 0, 2**62), default=0, help="of all random numbers (0)")
        add("--device", type=device, default="auto", help="cpu, cuda, ...; auto: a GPU if any")
        add("--checkpoint", type=Path, metavar="PATH", help=checkpoint)
        add("--figures", type=Path, metavar="FOLDER", default=figures, help="(figures/)")
        add("--metrics", type=Path, metavar="FILE", help="also write this run's metrics as JSON")


def number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], float]:
    """A type for argparse: a finite int or float in [low, high]."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high or abs(value) == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high}]")
        return value

    parse.__name__ = kind.__name__  # which argparse names if the text is no number
    return parse


def device(text: str) -> torch.device:
    """A type for argparse: a device that this machine has."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(text)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text} cannot be used here: {reason}") from None
    return chosen
