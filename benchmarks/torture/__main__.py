"""Does to the scripts what goes wrong in a lab, many times over, and counts what comes of it.

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
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before torch is imported: its threads would not survive a fork
)

import torch

from benchmarks.about import provenance
from benchmarks.torture import inputs, runs
from benchmarks.torture.harness import WRONG
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, write_json

# What is done, how often, and the function that does it.
KINDS = {
    "kill -9 while a Glow trains and writes, then --resume": (50, runs.kill),
    **{f"SIGTERM or Ctrl-C: {name}": (16, runs.stop(name)) for name in runs.SCRIPTS},
    "no more room on the disk, in each script": (40, runs.full_disk),
    "a second run on the same checkpoint": (10, runs.two_runs),
    "one of two processes is killed, then --resume": (
        10,
        runs.lose_one(runs.signal.SIGKILL),
    ),
    "one of two processes hangs, then --resume": (
        4,
        runs.lose_one(runs.signal.SIGSTOP),
    ),
    "loss, gradient or weights that are not finite": (18, runs.not_finite),
    "truncated checkpoints": (120, inputs.damage(inputs.truncate)),
    "checkpoints with a flipped bit": (480, inputs.damage(inputs.flip)),
    "checkpoints with an edited value": (480, inputs.edited),
    "files of another kind": (120, inputs.other_kind),
    "odd values of every flag": (300, inputs.flags),
    "tables of points with changed bytes": (400, inputs.mutated_tables),
    "pictures and masks with changed bytes": (420, inputs.mutated_pictures),
}


def run_kind(kind, tries: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """How often what came of a kind's tries, and a description of each that was not right."""
    counts, problems = Counter(right=0, **dict.fromkeys(WRONG, 0)), []
    with tempfile.TemporaryDirectory() as folder:
        for problem in kind(tries, Path(folder), random.Random(seed)):
            counts[problem.partition(":")[0] or "right"] += 1
            problems += [problem] if problem else []
    return dict(counts), problems


@one_line_errors()
def main(argv=None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="of what is tried (0)"
    )
    parser.add_argument(
        "--only", default="", help="the kinds whose names have this in them"
    )
    parser.add_argument(
        "--tries", type=number(int, 1), help="of each kind, instead of its own"
    )
    args = parser.parse_args(argv)
    rows, begin = [], time.monotonic()
    for name, (tries, kind) in KINDS.items():
        if args.only not in name:
            continue
        start = time.monotonic()
        counts, problems = run_kind(kind, args.tries or tries, args.seed)
        rows.append(
            {
                "kind": name,
                "tries": sum(counts.values()),
                **counts,
                "problems": problems,
            }
        )
        words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        print(
            f"{name}: {words}   ({time.monotonic() - start:.0f} s)",
            *problems,
            sep="\n  ",
            flush=True,
        )
    if not (args.only or args.tries):
        command = ["python", "-m", "benchmarks.torture"]
        about = provenance(command, torch.device("cpu"))
        about |= {"seed": args.seed, "seconds": round(time.monotonic() - begin)}
        write_json(
            ROOT / "benchmarks/results/torture.json", {"about": about, "rows": rows}
        )
    if any(row["problems"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
