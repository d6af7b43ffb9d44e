"""Does to the scripts what goes wrong in a lab, many times over, and counts the losses.

    python -m benchmarks.torture

A try is right if what was worked for is still there, and if what went wrong was said in
a line. Otherwise it is lost (a file is damaged or gone, or a resumed run ends with
other weights), silent (a wrong result without a word), a traceback, or a hang.

Writes   benchmarks/results/torture.json
Takes    22 minutes on one CPU core (AMD EPYC without AVX-512)
"""

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

# Before torch is imported, since its threads would not survive a fork.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from benchmarks.about import provenance
from benchmarks.torture import inputs, runs
from benchmarks.torture.harness import WRONG
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, write_json

RESULTS = ROOT / "benchmarks/results/torture.json"
killed = runs.lose_one(runs.signal.SIGKILL)
hung = runs.lose_one(runs.signal.SIGSTOP)
# What is done, how often, and the function that does it.
KINDS = {
    "kill -9 while a Glow trains and writes, then --resume": (50, runs.kill),
    **{f"SIGTERM or Ctrl-C: {name}": (16, runs.stop(name)) for name in runs.SCRIPTS},
    "no more room on the disk, in each script": (40, runs.full_disk),
    "a second run on the same checkpoint": (10, runs.two_runs),
    "one of two processes is killed, then --resume": (10, killed),
    "one of two processes hangs, then --resume": (4, hung),
    "loss, gradient or weights that are not finite": (18, runs.not_finite),
    "truncated checkpoints": (120, inputs.damage(inputs.truncate)),
    "checkpoints with a flipped bit": (480, inputs.damage(inputs.flip)),
    "checkpoints with an edited value": (480, inputs.edited),
    "files of another kind": (120, inputs.other_kind),
    "odd values of every flag": (300, inputs.flags),
    "tables of points with changed bytes": (400, inputs.mutated_tables),
    "pictures and masks with changed bytes": (420, inputs.mutated_pictures),
}


def run_kind(name: str, kind: Callable, tries: int, seed: int) -> dict:
    """A row: how often what came of a kind's tries, and each that was not right."""
    counts = Counter(right=0, **dict.fromkeys(WRONG, 0))
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for problem in kind(tries, Path(folder), random.Random(seed)):
            counts[problem.partition(":")[0] or "right"] += 1
            if problem:
                problems.append(problem)
    return {"kind": name, "tries": counts.total(), **counts, "problems": problems}


def report_kind(row: dict, seconds: float) -> None:
    """Prints a row, and each try that was not right."""
    ends = [f"{row[word]} {word}" for word in ("right", *WRONG) if row[word]]
    line = f"{row['kind']}: {', '.join(ends)}   ({seconds:.0f} s)"
    print(line, *row["problems"], sep="\n  ", flush=True)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="seed of what is tried"
    )
    parser.add_argument(
        "--only", default="", help="the kinds whose names have this in them"
    )
    parser.add_argument(
        "--tries", type=number(int, 1), help="tries of each kind, instead of its own"
    )
    args = parser.parse_args(argv)

    rows = []
    begin = time.monotonic()
    for name, (tries, kind) in KINDS.items():
        if args.only not in name:
            continue
        start = time.monotonic()
        rows.append(run_kind(name, kind, args.tries or tries, args.seed))
        report_kind(rows[-1], time.monotonic() - start)

    # A part of the tries is no result.
    if not (args.only or args.tries):
        command = ["python", "-m", "benchmarks.torture"]
        about = provenance(command, torch.device("cpu"))
        about |= {"seed": args.seed, "seconds": round(time.monotonic() - begin)}
        write_json(RESULTS, {"about": about, "rows": rows})
    if any(row["problems"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
