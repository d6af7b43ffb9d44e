"""What does a training step of the 2-D flows cost, beside normflows' of equal widths?

    python -m benchmarks.moons_steps

times steps of train_moons.py's optimizer on batches of 512 points, ours and normflows'
in turn, on one thread. Every time is CPU time, a median over the rounds.

Writes   benchmarks/results/moons_steps.json
Takes    a minute on one CPU core
"""

import sys
from statistics import median

import torch

from benchmarks.about import add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, table
from benchmarks.moons_models import STEP_TIME_PAIRS
from benchmarks.moons_peers import BATCH, Data, time_in_turn, use_one_core
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import write_json

# ---------------------------------------------------------------- measure


def time_steps(data: Data, rounds: int, steps: int) -> list[dict]:
    """A row for each pair: the medians over the rounds, ours and normflows' in turn.

    `ratio` is normflows' over ours, with its least and greatest value in a round.
    """
    torch.manual_seed(data.seed)
    rows = []
    for pair, builders in STEP_TIME_PAIRS.items():
        models = [build(data.mean, data.std) for build in builders]
        recipes = [("Muon", 1e-3)] * 2
        times = time_in_turn(models, recipes, data.batches(), rounds, steps)
        ours, normflows = times

        ratios = [theirs / mine for mine, theirs in zip(ours, normflows)]
        row = {
            "pair": pair,
            "ours_ms": median(ours),
            "normflows_ms": median(normflows),
            "ratio": median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
        rows.append(row)
    return rows


# ---------------------------------------------------------------- table


def steps_table() -> str:
    """The cost of a training step, beside normflows' of the same widths and depth."""
    results = load("moons_steps")
    about = results["about"]
    rows = []
    for row in results["rows"]:
        ratio = f"{row['ratio']:.2f}"
        span = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        times = [f"{row['ours_ms']:.1f}", f"{row['normflows_ms']:.1f}"]
        rows.append([row["pair"], *times, f"{ratio} ({span})"])

    what = f"12 couplings, 2x64, batch {about['batch']}"
    header = [what, "ours, ms", "normflows, ms", "ratio"]
    rounds = f"medians and ranges of {about['rounds']} rounds"
    return table(header, rows) + measured_on(about, rounds)


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--rounds", type=number(int, 1), default=15, help="rounds of both in turn")
    add("--steps", type=number(int, 1), default=50, help="training steps in a round")
    add("--core", type=number(int, 0), default=0, help="CPU core to run on")
    add_output_flag(parser, "moons_steps")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    use_one_core(args.core)
    rows = time_steps(Data(0.05, 0), args.rounds, args.steps)

    for row in rows:
        times = f"ours {row['ours_ms']:.1f} ms, normflows {row['normflows_ms']:.1f} ms"
        print(f"{row['pair']}: {times}; ratio {row['ratio']:.2f}")

    command = command_of("moons_steps", *(sys.argv[1:] if argv is None else argv))
    about = provenance(command, torch.device("cpu"))
    about |= {"rounds": args.rounds, "steps": args.steps, "batch": BATCH}
    write_json(args.output, {"about": about, "rows": rows})
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
