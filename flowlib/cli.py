"""The command line: a parser with the flags that all scripts have, one-line errors."""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

from flowlib.files import ROOT, UserError, reason


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a script as a shell expects it: one line on stderr, never a traceback.

    The exit status is 2 for a `UserError`, 130 for Ctrl-C, 143 for SIGTERM. In all
    cases no file is left half written.
    """

    def terminate(*_) -> NoReturn:
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
def handle_signals(handler: Callable, *signals: int) -> Iterator[None]:
    """Has `handler` called for these signals.

    Only the main thread can handle signals; in others nothing changes.
    """
    with contextlib.ExitStack() as afterwards:
        if threading.current_thread() is threading.main_thread():
            for one in signals:
                earlier = signal.signal(one, handler)
                afterwards.callback(signal.signal, one, earlier)
        yield


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Lets a run go on when nobody reads its output: `| head -1`, or without stderr."""
    with open(os.devnull, "w") as nowhere:
        # Python has None for a stream that was closed before it started (2>&-).
        out = LastingStream(sys.stdout or nowhere, nowhere)
        err = LastingStream(sys.stderr or nowhere, nowhere)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                yield
            finally:
                out.flush()
                err.flush()


class LastingStream:
    """A text stream whose reader may go; only what is printed after that is lost."""

    def __init__(self, stream: IO, nowhere: IO):
        self.stream = stream
        self.nowhere = nowhere
        # A file's name need not be UTF-8. Notebooks and tests have other streams.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable, *args: str) -> None:
        try:
            action(*args)
        except BrokenPipeError:
            # At exit, what is still in the buffer goes nowhere too.
            os.dup2(self.nowhere.fileno(), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """Computes with `count` threads, by default one fewer than torch would take.

    Where the environment variable OMP_NUM_THREADS is set, it decides. The threads wait
    for each other in busy loops, so beside another process two on two cores are slower
    than one. Waiting passively (OMP_WAIT_POLICY) is no remedy. Medians of three
    alternating rounds on two cores of an AMD EPYC, torch 2.14:

                                free machine         beside a busy process
        threads                 1     2   2 passive   1     2   2 passive
        a Glow's step, ms     115    83   158       117   310   406
        a 14x14 hole, s       2.7   2.3   4.9       3.1   8.0   3.4
        a 2-D flow's step, ms  10    11    47        11    23    17

    Until the end numbers below 1e-38 become 0. Where gradients are 0, the moving means
    of an optimizer become so small in a long run. Computing with them doubles the time
    of a 2-D flow's step.
    """
    torch.set_flush_denormal(True)
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count or max(1, before - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)  # as torch starts


class HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter,
    argparse.RawDescriptionHelpFormatter,
):
    """Prints the description as it stands, and after each flag's help its default.

    A flag without a default shows none, nor does one whose help ends with it, in
    parentheses.
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        none = str(action.default) in ("None", "False", "[]", "")
        if none or action.help.endswith(")"):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose help is the script's docstring, and whose errors are one line."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=HelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def refuse(self, args: argparse.Namespace, when: str, *names: str) -> None:
        """Ends with an error if one of these flags was given: it has no meaning `when`.

        Args:
            args: what was parsed.
            when: the mode in words, such as "with --image".
            names: of the flags, as attributes of `args`.
        """
        for name in names:
            if getattr(args, name) != self.get_default(name):
                self.error(f"--{name.replace('_', '-')} has no meaning {when}")

    def add_common_flags(self, checkpoint: str) -> None:
        """Adds --checkpoint, with this help, --figures, --metrics, --device, --seed."""
        add = self.add_argument_group("output and machine").add_argument
        add("--checkpoint", type=Path, metavar="PATH", help=checkpoint)
        add(
            "--figures",
            type=Path,
            metavar="FOLDER",
            default=ROOT / "figures",
            help="folder for the figures (default: figures/)",
        )

        add(
            "--metrics",
            type=Path,
            metavar="FILE",
            help="file for this run's metrics, as JSON",
        )

        add(
            "--device",
            type=device,
            default="auto",
            help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one",
        )
        add(
            "--seed",
            type=number(int, 0, 2**62),
            default=0,
            help="seed of all random numbers",
        )


def number(
    kind: type,
    low: float,
    high: float = float("inf"),
) -> Callable[[str], float]:
    """A type for argparse: a finite int or float in [low, high]."""

    def parse(text: str) -> float:
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
        raise argparse.ArgumentTypeError(
            f"{text} cannot be used here: {reason(error)}"
        ) from None
    return chosen
