"""The command line: a parser with the flags that mean the same everywhere, and one-line errors."""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from flowlib.files import ROOT, UserError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a script as a shell expects it, with one line on stderr and never a traceback.

    Exit status 2 for a `UserError`, 130 for Ctrl-C, 143 for SIGTERM. Files are whole in
    all cases.
    """

    def terminate(*_):
        print("terminated", file=sys.stderr)
        raise SystemExit(143)

    with lasting_streams(), handle_signals(terminate, signal.SIGTERM):
        try:
            yield
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


@contextlib.contextmanager
def handle_signals(handler: Callable, *numbers: int) -> Iterator[None]:
    """Has `handler` called for these signals. Only the main thread can; others leave them be."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Lets a run go on when nobody reads what it prints: after `| head -1`, or without stderr."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        # Python has None for a stream that was closed before it started (2>&-).
        sys.stdout, sys.stderr = (
            LastingStream(one or nowhere, nowhere) for one in before
        )
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


class LastingStream:
    """A text stream whose reader may go; what is printed after that is lost, and nothing else."""

    def __init__(self, stream, nowhere):
        self.stream = stream
        self.nowhere = nowhere
        # notebooks and tests have streams of their own
        if hasattr(stream, "reconfigure"):
            # a file's name need not be UTF-8
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable, *args) -> None:
        try:
            action(*args)
        # also what is still in the buffer goes nowhere, at exit
        except BrokenPipeError:
            os.dup2(self.nowhere.fileno(), self.stream.fileno())

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextlib.contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """Computes with `count` threads, by default one fewer than torch would take, at least one.

    Where the environment variable OMP_NUM_THREADS is set, it decides. The threads wait
    for each other in busy loops, so beside another process two on two cores are slower
    than one. Waiting passively (OMP_WAIT_POLICY) is no remedy. Medians of three
    alternating rounds on two cores of an AMD EPYC, torch 2.14:

                                free machine         beside a busy process
        threads                 1     2   2 passive   1     2   2 passive
        a Glow's step, ms     115    83   158       117   310   406
        a 14x14 hole, s       2.7   2.3   4.9       3.1   8.0   3.4
        a 2-D flow's step, ms  10    11    47        11    23    17
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count or max(1, before - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help is the script's docstring, and whose errors are one line."""

    def __init__(self, doc: str):
        super().__init__(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )

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
        add(
            "--seed",
            type=number(int, 0, 2**62),
            default=0,
            help="of all random numbers (0)",
        )
        add(
            "--device",
            type=device,
            default="auto",
            help="cpu, cuda, ...; auto: a GPU if any",
        )
        add("--checkpoint", type=Path, metavar="PATH", help=checkpoint)
        add(
            "--figures", type=Path, metavar="FOLDER", default=figures, help="(figures/)"
        )
        add(
            "--metrics",
            type=Path,
            metavar="FILE",
            help="also write this run's metrics as JSON",
        )


def number(
    kind: type, low: float, high: float = float("inf")
) -> Callable[[str], float]:
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
        raise argparse.ArgumentTypeError(
            f"{text} cannot be used here: {reason}"
        ) from None
    return chosen
