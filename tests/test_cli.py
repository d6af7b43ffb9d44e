"""Help and defaults, and scripts that save whatever becomes of their streams."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import train_moons
from flowlib.cli import LastingStream, Parser, threads
from flowlib.files import ROOT

QUICK = ["--epochs", "1", "--steps-per-epoch", "2", "--layers", "2", "--hidden", "4"]
PYTHON = sys.executable
STREAMS = {
    "nobody reads the output": f"{PYTHON} -u train_moons.py {{}} | head -1",
    "no stderr": f"{PYTHON} train_moons.py {{}} 2>&-",
    "no stdout": f"{PYTHON} train_moons.py {{}} >&-",
}


def into(folder) -> list[str]:
    return [*QUICK, "--checkpoint", str(folder), "--figures", str(folder)]


@pytest.mark.parametrize("command", STREAMS.values(), ids=STREAMS)
def test_weights_are_saved_whatever_becomes_of_the_streams(command, tmp_path):
    line = f"set -o pipefail; {command.format(' '.join(into(tmp_path)))}"
    shell = ["bash", "-c", line]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert {"moons_realnvp.pt", "moons_permutation.pt", "moons.gif"} <= written


def test_a_stream_goes_on_when_its_pipe_is_closed():
    reading, writing = os.pipe()
    with open(os.devnull, "w") as nowhere, os.fdopen(writing, "w") as pipe:
        os.close(reading)
        stream = LastingStream(pipe, nowhere)
        for _ in range(3):
            stream.write("x" * 100_000)
            stream.flush()
        assert not stream.isatty()


def test_main_runs_in_a_thread(tmp_path):
    thread = threading.Thread(target=train_moons.main, args=[into(tmp_path)])
    thread.start()
    thread.join()
    assert (tmp_path / "moons_permutation.pt").exists()


def test_help_says_each_default_once(capsys):
    parser = Parser("What it does.\n\n    python it.py\n")
    parser.add_argument("--width", default=32, help="the networks' width")
    parser.add_argument("--zero", default=0, help="may be nothing")
    parser.add_argument("--given", default=5, help="says it already (default: five)")
    parser.add_argument("--switch", action="store_true", help="does something")
    parser.add_argument("--file", help="to read")
    parser.add_common_flags("the weights (default: moons.pt)")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])

    printed = capsys.readouterr().out
    assert "What it does.\n\n    python it.py\n" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in (
        "--width WIDTH the networks' width (default: 32)",
        "--zero ZERO may be nothing (default: 0)",
        "--given GIVEN says it already (default: five)",
        "--switch does something",
        "--file FILE to read",
        "--checkpoint PATH the weights (default: moons.pt)",
        "--seed SEED seed of all random numbers (default: 0)",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("own", "asked", "before", "inside"),
    [
        ("", 1, 4, 1),
        ("", None, 4, 3),
        ("", None, 1, 1),
        ("2", 1, 4, 4),
        ("2", None, 4, 4),
    ],
)
def test_threads_are_few_unless_the_user_says_and_the_callers_come_back(
    own, asked, before, inside, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    callers = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        with threads(asked):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(callers)


def test_numbers_that_are_slow_to_compute_with_become_zero():
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor has no such mode")
    torch.set_flush_denormal(False)
    tiny = torch.tensor(1e-39)
    assert (tiny * 1).item() > 0
    with threads(1):
        assert (tiny * 1).item() == 0
    assert (tiny * 1).item() > 0
