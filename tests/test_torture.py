"""A few tries of `make torture`, as it is started from a shell."""

import subprocess
import sys

from benchmarks.torture.harness import Outcome, judge
from flowlib.files import ROOT


def test_damaged_checkpoints_are_refused():
    command = [sys.executable, "-m", "benchmarks.torture"]
    command += ["--only", "checkpoints", "--tries", "5"]
    options = dict(cwd=ROOT, capture_output=True, text=True, timeout=120)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": 5 right") == 3  # truncated, with a flipped bit, edited


def test_each_way_to_go_wrong_is_seen():
    ends = {
        "": Outcome(2, "error: no such file", 1, False),
        "hang": Outcome(137, "", 60, True),
        "traceback": Outcome(1, "Traceback (most recent call last)", 1, False),
        "silent": Outcome(2, "", 1, False),
    }
    for word, end in ends.items():
        assert judge(end, 0, 2) == word
    assert judge(Outcome(0, "", 1, False), 2) == "silent"  # it should have failed
    assert judge(Outcome(139, "", 1, False), 0, 2) == "traceback"  # it crashed
