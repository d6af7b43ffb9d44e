"""Writes the tables of README.md and benchmarks/README.md from benchmarks/results.

    python -m benchmarks.tables

So every number in a table is one that a run has written. A table's function stands in
the benchmark that writes its results file, beside `main`.

Reads    benchmarks/results/*.json
Writes   what stands between `<!-- table NAME -->` and `<!-- end -->` in both files
"""

import re

from benchmarks.digit_calibration import digit_calibration_table
from benchmarks.glow_bits import GOAL, glow_bits_table, glow_race_table, times_to_goal
from benchmarks.glow_regularizers import regularizers_table
from benchmarks.glow_speed import glow_speed_table
from benchmarks.inpainting_calibration import inpainting_calibration_table
from benchmarks.inpainting_table import (
    TITLES,
    inpainting_accuracy_table,
    inpainting_crps_table,
    inpainting_intervals_table,
    inpainting_map_table,
    inpainting_table,
)
from benchmarks.known_answer import known_answer_table
from benchmarks.last_stage import OURS, last_stage_table
from benchmarks.markdown import duration, load, measured_on, run_on, table
from benchmarks.moons_peers import moons_table
from benchmarks.moons_steps import steps_table
from benchmarks.processes import processes_table
from benchmarks.table_density import table_density_table
from benchmarks.table_gaps import table_gaps_table
from benchmarks.torture.harness import WRONG
from flowlib.cli import one_line_errors
from flowlib.files import ROOT, write_atomically
from flowlib.plots import moons as moons_plots

PAGES = (ROOT / "README.md", ROOT / "benchmarks/README.md")
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# ---------------------------------------------------------------- the README's table


def results_table() -> str:
    """What the three scripts reach: one number a row, and which way is better."""
    header = ["what", "measure", "better", "result", "how sure", "cost"]
    return table(header, [*moons_rows(), *glow_rows(), *inpainting_rows()])


def moons_rows() -> list[list[str]]:
    """Both KL divergences of both 2-D flows, and of one whose base has two modes."""
    directions = {"kl_truth_flow": "truth ‖ flow", "kl_flow_truth": "flow ‖ truth"}
    rows = []
    for file, base in (("train_moons", ""), ("train_moons_2_modes", ", 2 modes")):
        moons = load(file)
        names = list(moons["spread"]) if not base else ["permutation"]
        for name in names:
            spread = moons["spread"][name]
            cost = f"{spread['seconds']['median']:.0f} s on {moons['hardware']}"
            for key, direction in directions.items():
                kl = spread[key]
                span = f"{kl['min']:.4f} to {kl['max']:.4f}, {moons['seeds']} seeds"
                what = f"Two moons, {moons_plots.TITLES[name]}{base}"
                measure = f"KL({direction}), nats"
                row = [what, measure, "lower", f"{kl['median']:.4f}", span, cost]
                rows.append(row)
    return rows


def glow_rows() -> list[list[str]]:
    """How fast the Glow reaches a published value, and where two runs end."""
    rows = []
    what = f"Glow on MNIST, to {GOAL} bits/dim on held-out images"
    for where, seconds in times_to_goal().items():
        rows.append([what, "time", "lower", duration(seconds), "one run", where])

    titles = {"default command": "default command", "the shipped weights": "shipped"}
    runs = {row["model"]: row for row in load("glow_bits")["rows"]}
    for name, title in titles.items():
        run = runs[name]
        bits = f"{run['test_bits_per_dim']:.3f}"
        error = f"± {run['test_bits_per_dim_se']:.3f}, {run['test_images']:,} images"
        parts = [runs[run["goes_on_from"]], run] if "goes_on_from" in run else [run]
        cost = ", then ".join(
            f"{duration(part['training_seconds'])} on {run_on(part)}" for part in parts
        )
        what = f"Glow on MNIST, {title}"
        rows.append([what, "test bits/dim", "lower", bits, error, cost])
    return rows


def inpainting_rows() -> list[list[str]]:
    """PSNR of five methods in a large square hole."""
    shown = (
        "ours, mean",
        "mean of 20 nearest",
        "Gaussian mixture, mean",
        "U-Net, supervised",
        "MAP",
    )
    found = {}
    for row in load("inpainting")["rows"]:
        if row["mask"] == "square:14":
            found[row["method"]] = row

    costs = dict.fromkeys(shown, "")
    costs["ours, mean"] = cost_of_fills("square:14")
    rows = []
    for method in shown:
        row = found[method]
        what = f"14x14 hole, {TITLES.get(method, 'MAP estimate')}"
        psnr = f"{row['hole_psnr']:.1f}"
        span = f"{row['hole_psnr_low']:.1f} to {row['hole_psnr_high']:.1f}"
        sure = f"{span}, {row['n']} images"
        rows.append([what, "PSNR, dB", "higher", psnr, sure, costs[method]])
    return rows


def cost_of_fills(kind: str) -> str:
    """How long an image's twelve fills take under one kind of mask."""
    results = load("last_stage")
    (row,) = [
        row for row in results["rows"] if (row["mask"], row["ending"]) == (kind, OURS)
    ]
    seconds = row["refine_seconds"] + row["seconds"]
    return f"{seconds:.1f} s an image on {results['about']['hardware']}"


# ---------------------------------------------------------------- all tables


def torture_table() -> str:
    """What came of everything that was done to the scripts."""
    results = load("torture")
    columns = ["tries", "right", *WRONG]
    rows = []
    for row in results["rows"]:
        rows.append([row["kind"], *(str(row[name]) for name in columns)])

    minutes = f"{results['about']['seconds'] / 60:.0f} minutes"
    header = ["what was done", *columns]
    return table(header, rows) + measured_on(results["about"], minutes)


TABLES = {
    "results": results_table,
    "moons": moons_table,
    "steps": steps_table,
    "table_density": table_density_table,
    "table_gaps": table_gaps_table,
    "glow_bits": glow_bits_table,
    "glow_race": glow_race_table,
    "regularizers": regularizers_table,
    "glow_speed": glow_speed_table,
    "inpainting": inpainting_table,
    "inpainting_map": inpainting_map_table,
    "inpainting_accuracy": inpainting_accuracy_table,
    "inpainting_crps": inpainting_crps_table,
    "inpainting_intervals": inpainting_intervals_table,
    "inpainting_calibration": inpainting_calibration_table,
    "last_stage": last_stage_table,
    "known_answer": known_answer_table,
    "digit_calibration": digit_calibration_table,
    "processes": processes_table,
    "torture": torture_table,
}


def with_tables(text: str) -> str:
    """The text with each marked table written anew."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


@one_line_errors()
def main() -> None:
    for page in PAGES:
        text = with_tables(page.read_text())
        write_atomically(page, lambda temporary, text=text: temporary.write_text(text))
        print(f"wrote the tables of {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
