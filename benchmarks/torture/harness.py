"""Runs a script in a process, does something to it, and judges what is left."""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

# What may be wrong, from the worst: something that was there or was worked for is gone;
# a wrong result without a word; a traceback instead of a line; no end.
WRONG = ("lost", "silent", "traceback", "hang")
# One fork at a time: another thread's child would keep the pipe's end open.
FORKING = threading.Lock()


@dataclass
class Outcome:
    """How a process ended."""

    status: int  # as a shell shows it
    text: str  # what it printed
    seconds: float
    hung: bool


def attempt(
    call: Callable[[], object],
    act: Callable[[int], object] | None = None,
    timeout: float = 60,
    largest_file: int | None = None,
) -> Outcome:
    """Runs call() in a forked process, and act(its process id) beside it.

    The process may use 8 GiB more memory than this one, and `largest_file` bytes a
    file, as if the disk were full. A fork starts in milliseconds, where a new Python
    needs seconds for its imports. It is safe as long as this process has neither run a
    backward pass nor started threads of torch.
    """
    start = time.monotonic()
    with FORKING:
        read_end, write_end = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(read_end)
            _run_in_child(call, write_end, largest_file)
        os.close(write_end)
    if act:
        threading.Thread(target=act, args=(process,), daemon=True).start()

    # What it prints, to its end.
    parts = []
    hung = False
    while True:
        left = timeout - (time.monotonic() - start)
        if not select.select([read_end], [], [], max(left, 0))[0]:
            hung = True
            os.kill(process, signal.SIGKILL)
            break
        part = os.read(read_end, 65536)
        if not part:
            break
        parts.append(part)
    os.close(read_end)

    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status < 0:  # it ended by a signal
        status = 128 - status
    text = b"".join(parts).decode(errors="replace")
    return Outcome(status, text, time.monotonic() - start, hung)


def _run_in_child(
    call: Callable[[], object], write_end: int, largest_file: int | None
) -> None:
    """Runs call(), and ends the process with its exit status. Never returns."""
    status = 1
    try:
        # Both streams go to the pipe, and Ctrl-C works.
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)

        # 8 GiB more than what this process uses now.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2**33
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        call()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def kill_after(seconds: float, number: signal.Signals) -> Callable[[int], None]:
    """An `act` that sends a signal after a while, if the process is still there."""

    def act(process: int) -> None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    return act


def judge(outcome: Outcome, *statuses: int) -> str:
    """What is wrong with how a process ended, "" if nothing.

    It should have one of `statuses`.
    """
    if outcome.hung:
        return "hang"
    if "Traceback" in outcome.text:
        return "traceback"
    if outcome.status not in statuses:
        return "silent" if outcome.status == 0 else "traceback"
    # Status 2 comes with a line that says why.
    return "silent" if outcome.status == 2 and "error: " not in outcome.text else ""


def damaged_files(folder: Path) -> list[str]:
    """The files below a folder that cannot be read, or that nobody needs any more."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in paths if not _is_good(path)]


def _is_good(path: Path) -> bool:
    """Whether a file can be read, and is none that a run should have removed."""
    try:
        if path.suffix in (".png", ".gif"):
            Image.open(path).load()
        elif path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
    except Exception:
        return False
    return path.suffix not in (".part", ".lock")
