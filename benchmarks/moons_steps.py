"""What a training step of our 2-D flows costs, beside normflows' layers of the same widths.

    python benchmarks/moons_steps.py

times steps of train_moons.py's optimizer on batches of 512 points, ours and normflows'
in turn, on one thread. Every time is CPU time, a median over the rounds.

Writes   benchmarks/results/moons_steps.json
Takes    a minute on one CPU core
"""

import sys
import time
from pathlib import Path
from statistics import median

import torch

# the modules lie one folder up
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.about import provenance
from benchmarks.moons_models import STEP_TIME_PAIRS
from benchmarks.moons_peers import BATCH, Data, make_optimizer, take_step, use_one_core
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, write_json


def time_steps(data: Data, rounds: int, steps: int) -> list[dict]:
    """CPU time of a training step in ms, ours and normflows' in turn: medians over the rounds.

    `ratio` is normflows' over ours, with its least and greatest value in a round.
    """
    torch.manual_seed(data.seed)
    rows = []
    for pair, builders in STEP_TIME_PAIRS.items():
        models = [build(data.mean, data.std) for build in builders]
        # at Adam's own rate of 0.001
        optimizers = [make_optimizer(model) for model in models]
        batches, times = data.batches(), ([], [])
        for i in range(rounds + 1):
            for model, optimizer, taken in zip(models, optimizers, times):
                drawn = [next(batches) for _ in range(steps if i else 3)]
                start = time.process_time()
                for batch in drawn:
                    take_step(model, optimizer, batch)
                if i:  # the first round only warms up
                    taken.append((time.process_time() - start) / steps * 1000)
        ratios = [normflows / ours for ours, normflows in zip(*times)]
        row = {
            "pair": pair,
            "ours_ms": median(times[0]),
            "normflows_ms": median(times[1]),
        }
        row |= {
            "ratio": median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
        rows.append(row)
    return rows


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, output = parser.add_argument, ROOT / "benchmarks/results/moons_steps.json"
    add("--rounds", type=number(int, 1), default=15, help="of both models in turn (15)")
    add("--steps", type=number(int, 1), default=50, help="in a round (50)")
    add("--core", type=number(int, 0), default=0, help="the CPU core to run on (0)")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        default=output,
        help="(benchmarks/results/...)",
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    use_one_core(args.core)
    command = [
        "python",
        "benchmarks/moons_steps.py",
        *(sys.argv[1:] if argv is None else argv),
    ]
    about = provenance(command, torch.device("cpu"))
    about |= {"rounds": args.rounds, "steps": args.steps, "batch": BATCH}
    rows = time_steps(Data(0.05, 0), args.rounds, args.steps)
    for row in rows:
        times = f"ours {row['ours_ms']:.1f} ms, normflows {row['normflows_ms']:.1f} ms"
        print(f"{row['pair']}: {times}; ratio {row['ratio']:.2f}")
    write_json(args.output, {"about": about, "rows": rows})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
