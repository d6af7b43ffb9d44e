"""Writes the tables of README.md and benchmarks/README.md from the files in benchmarks/results.

    python benchmarks/tables.py

So every number in a table is one that a run has written.

Reads    benchmarks/results/*.json
Writes   what stands between `<!-- table NAME -->` and `<!-- end -->` in both files
"""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

# the modules lie one folder up
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flowlib.cli import one_line_errors
from flowlib.files import ROOT, UserError, write_atomically
from flowlib.plots.moons import TITLES

RESULTS = ROOT / "benchmarks/results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks/README.md")
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# What the inpainting tables show; the results file has every method under every mask.
KINDS = ("square:8", "square:14", "noise:0.5", "noise:0.9")
METHODS = {
    "nearest neighbor": "most similar training image",
    "mean of 20 nearest": "mean of the 20 most similar",
    "biharmonic": "biharmonic",
    "Gaussian mixture, mean": "Gaussian mixture, mean",
    "Gaussian mixture, sample": "Gaussian mixture, one sample",
    "posterior, mean": "ours, mean of 12 samples",
    "posterior, sample": "ours, one sample",
    "U-Net, supervised": "U-Net, trained for the task",
}
GOAL = 1.05  # bits/dim, the published Glow's
WRONG = ("lost", "silent", "traceback", "hang")  # see benchmarks/torture
MAP_METHODS = {"MAP": "MAP", "MAP from sample": "the ascent from the likeliest sample"}

# ---------------------------------------------------------------- helpers


def load(name: str) -> dict:
    """A results file; raises UserError if it cannot be read."""
    try:
        return json.loads((RESULTS / f"{name}.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {RESULTS / name}.json: {error}") from None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def measured_on(about: dict, *more: str) -> str:
    """The line below a table: on what it was measured."""
    torch, where = f"torch {about['versions']['torch']}", [about["hardware"]]
    if not about["hardware"].startswith(about.get("flow_hardware", "")):
        where.append(f"the flow's fills on {about['flow_hardware']}")
    return f"\n{'; '.join([*where, *more, torch, about['date']])}.\n"


def minutes(seconds: float) -> str:
    """A duration as a table wants it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def run_on(row: dict) -> str:
    """The hardware of a run, and its processes if there were several."""
    several = row.get("processes", 1) > 1
    return row["hardware"] + (f", {row['processes']} processes" if several else "")


def middle(values: list) -> float:
    """The median of what is finite; nan if nothing is."""
    return median([value for value in values if value is not None] or [float("nan")])


# ---------------------------------------------------------------- README


def results_table() -> str:
    """What the three scripts reach."""
    moons, rows = load("train_moons"), []
    for name, spread in moons["spread"].items():
        kl, reverse = spread["kl_truth_flow"], spread["kl_flow_truth"]
        what = f"Two moons, {TITLES[name]}: KL(truth ‖ flow), KL(flow ‖ truth)"
        result = f"{kl['median']:.4f}, {reverse['median']:.4f} nats"
        remark = f"{kl['min']:.4f} to {kl['max']:.4f} over {moons['seeds']} seeds"
        took = f"{spread['seconds']['median']:.0f} s on {moons['hardware']}"
        rows.append([what, result, f"{remark}; {took}"])
    runs = {row["model"]: row for row in load("glow_bits")["rows"]}
    reached: dict[str, float] = {}  # on which hardware: after how many seconds
    for row in (row for name, row in runs.items() if not name.startswith("normflows")):
        seconds = [
            point["seconds"] for point in row["curve"] if point["held_out"] <= GOAL
        ]
        reached[run_on(row)] = min([*seconds, reached.get(run_on(row), math.inf)])
    what = f"Glow on MNIST: time to {GOAL} bits/dim on 1,000 held-out images"
    for where, seconds in reached.items():
        if seconds < math.inf:
            rows.append([what, minutes(seconds), f"averaged weights; {where}"])
    for title, name in (
        ("default command", "default command"),
        ("shipped", "the shipped weights"),
    ):
        run = runs[name]
        result = f"{run['test_bits_per_dim']:.3f} ± {run['test_bits_per_dim_se']:.3f} bits/dim"
        took = f"{minutes(run['training_seconds'])} on {run_on(run)}"
        remark = f"{run['parameters']:,} parameters; {took}"
        rows.append([f"Glow on MNIST, {title}: 10,000 test images", result, remark])
    cells = {
        row["method"]: row
        for row in load("inpainting")["rows"]
        if row["mask"] == "square:14"
    }
    shown = (
        "posterior, mean",
        "mean of 20 nearest",
        "Gaussian mixture, mean",
        "U-Net, supervised",
    )
    for method, title in {
        **{name: METHODS[name] for name in shown},
        "MAP": "MAP estimate",
    }.items():
        row = cells[method]
        span = f"{row['hole_psnr_low']:.1f} to {row['hole_psnr_high']:.1f}"
        remark = f"95 % interval {span}, {row['n']} test images"
        rows.append(
            [f"14x14 hole, {title}: PSNR", f"{row['hole_psnr']:.1f} dB", remark]
        )
    return table(["what", "result", ""], rows)


# ---------------------------------------------------------------- two moons


def moons_table() -> str:
    """Ours and the peers at equal CPU time: medians over the seeds, and the range of the KL."""
    moons = load("moons")
    groups: dict[tuple, list[dict]] = {}
    for row in moons["rows"]:
        groups.setdefault((row["sigma"], row["model"]), []).append(row)

    def column(rows: list[dict], name: str) -> list:
        return [row[name] for row in rows if row[name] is not None]

    def cells(key: tuple) -> list[str]:
        rows = groups[key]
        kl, reverse = column(rows, "kl_truth_flow"), column(rows, "kl_flow_truth")
        mass = column(rows, "mass")
        return [
            f"{key[0]}",
            key[1],
            f"{middle(kl):.4f} ({min(kl):.4f} to {max(kl):.4f})"
            if kl
            else "not finite",
            f"{middle(reverse):.4f}" if reverse else "-",
            *(f"{middle(column(rows, name)):,.0f}" for name in ("steps", "parameters")),
            f"{middle(mass):.4f}" if mass else "not finite",
            f"{middle(column(rows, 'non_finite')):,.0f}",
            f"{middle(column(rows, 'samples_per_second')):,.0f}",
        ]

    order = sorted(
        groups, key=lambda key: (key[0], middle(column(groups[key], "kl_truth_flow")))
    )
    header = [
        "σ",
        "model",
        "KL(truth ‖ flow), nats, over the seeds",
        "KL(flow ‖ truth)",
        "steps",
    ]
    header += ["parameters", "mass", "non-finite", "samples/s"]
    about = moons["about"]
    names = ", ".join(
        f"{name} {about['versions'][name]}" for name in ("normflows", "nflows", "zuko")
    )
    each = f"{about['seconds']:.0f} CPU seconds each"
    return table(header, [cells(key) for key in order]) + measured_on(
        about, each, names
    )


def steps_table() -> str:
    """The cost of a training step, beside normflows' couplings of the same widths and depth."""
    results = load("moons_steps")
    rows = [
        [row["pair"], *(f"{row[f'{name}_ms']:.1f}" for name in ("ours", "normflows"))]
        + [f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"]
        for row in results["rows"]
    ]
    about = results["about"]
    header = [
        f"12 couplings, 2x64, batch {about['batch']}",
        "ours, ms",
        "normflows, ms",
        "ratio",
    ]
    rounds = f"medians and ranges of {about['rounds']} rounds"
    return table(header, rows) + measured_on(about, rounds)


# ---------------------------------------------------------------- Glow


def glow_bits_table() -> str:
    """Bits/dim of each run of glow_bits.py, best last, then the published ones."""
    results, rows = load("glow_bits"), []
    for row in results["rows"]:
        weighted = f"{row['test_bits_per_dim_weighted']:.3f}" if row["draws"] else "-"
        bits = f"{row['test_bits_per_dim']:.3f} ± {row['test_bits_per_dim_se']:.3f}"
        cost = [f"{row['parameters']:,}", minutes(row["training_seconds"]), run_on(row)]
        sure = f"{row['sure_samples']:.0%}" if row["sure_samples"] else "-"
        rows.append([row["model"], bits, weighted, sure, *cost])
    about = results["about"]
    for name, row in about["published"].items():
        bound = "≤ " if row["source"].startswith("bound") else ""
        bits = f"{bound}{row['bits_per_dim']:.2f}"
        rows.append([f"{name} (published)", bits, "", "", "", "", row["source"]])
    rows.append(["test images", "", "", f"{about['sure_test_images']:.0%}", "", "", ""])
    draws = max(row["draws"] or 1 for row in results["rows"])
    header = [
        "model",
        "test bits/dim",
        f"{draws} draws",
        "sure digits",
        "parameters",
        "training",
    ]
    return table([*header, "hardware, source"], rows)


def glow_race_table() -> str:
    """How long normflows' Glow and ours take to the best that it reaches."""
    rows = []
    for race in load("glow_bits")["race"]:
        ratio = f"{race['peer_seconds'] / race['seconds']:.1f}"
        seconds = [f"{race[name]:,.0f} s" for name in ("peer_seconds", "seconds")]
        rows.append([race["peer"], f"{race['held_out']:.3f}", *seconds, ratio])
    header = [
        "normflows' run",
        "its best held-out bits/dim",
        "it takes",
        "ours takes",
        "ratio",
    ]
    return table(header, rows)


def glow_speed_table() -> str:
    """Images per second and memory, beside normflows' Glow of as many blocks and channels."""
    results = load("glow_speed")
    about = results["about"]
    rows = [
        [row["model"], f"{row['parameters']:,}"]
        + [
            f"{row[f'{task}_images_per_second']:,.0f}"
            for task in ("train", "score", "sample")
        ]
        + [f"{row['train_ratio']:.2f}", f"{row['memory_mib_per_image']:.1f} MiB"]
        for row in results["rows"]
    ]
    header = [
        "model",
        "parameters",
        "trained, images/s",
        "scored, images/s",
        "sampled, images/s",
    ]
    sizes = f"{about['blocks']} blocks a level, {about['hidden']} channels, batch {about['batch']}"
    header += ["training, ratio", "memory an image"]
    return table(header, rows) + measured_on(about, sizes)


# ---------------------------------------------------------------- inpainting


def by_kind(methods: dict[str, str], cell: Callable[[dict], str]) -> str:
    """A row a method, a column a kind of mask."""
    found = {(row["method"], row["mask"]): row for row in load("inpainting")["rows"]}
    rows = []
    for method, title in methods.items():
        cells = [found.get((method, kind)) for kind in KINDS]
        rows.append([title, *(cell(row) if row else "-" for row in cells)])
    return table(["method", *KINDS], rows)


def images_of(method: str) -> str:
    """On how many test images a method was measured."""
    (count,) = {
        row["n"] for row in load("inpainting")["rows"] if row["method"] == method
    }
    return f"the first {count} test images"


def inpainting_table() -> str:
    """Hole PSNR of eight methods under four masks."""
    about, rows = load("inpainting")["about"], load("inpainting")["rows"]
    error = median(row["hole_psnr_high"] - row["hole_psnr_low"] for row in rows) / 2
    width = f"95 % bootstrap intervals typically ± {error:.1f} dB"
    text = by_kind(METHODS, lambda row: f"{row['hole_psnr']:.1f}")
    return text + measured_on(
        about, f"hole PSNR in dB, {images_of('posterior, mean')}", width
    )


def inpainting_map_table() -> str:
    """Hole PSNR and log p of the MAP estimate and of where the likeliest sample leads."""
    text = by_kind(
        MAP_METHODS, lambda row: f"{row['hole_psnr']:.1f}, {row['above_truth']:+.0f}"
    )
    return text + measured_on(load("inpainting")["about"], images_of("MAP"))


def inpainting_accuracy_table() -> str:
    """How many filled images are still the digit that they were, for the classifier."""
    text = by_kind(METHODS, lambda row: f"{row['digit_accuracy']:.0%}")
    return text + measured_on(load("inpainting")["about"], images_of("posterior, mean"))


def inpainting_crps_table() -> str:
    """The score of the methods as distributions."""
    text = by_kind(METHODS, lambda row: f"{row['crps']:.4f}")
    return text + measured_on(load("inpainting")["about"], images_of("posterior, mean"))


def inpainting_sampler_table() -> str:
    """What the samples are worth on test images: coverage, ink, distance."""
    results = load("inpainting")
    samples = {
        row["mask"]: row
        for row in results["rows"]
        if row["method"] == "posterior, sample"
    }
    rows = []
    for row in results["sampler"]:
        kind = row["what"].removeprefix("test images, ")
        covered = [f"{row[f'coverage_{c}']:.1%}" for c in (50, 80, 90, 95)]
        sample = samples[kind]
        rest = [f"{sample['ink_ratio']:.2f}", f"{row['travelled']:.3f}"]
        rows.append([kind, *covered, *rest])
    header = ["mask", "50 % interval", "80 %", "90 %", "95 %", "ink", "travelled"]
    return table(header, rows) + measured_on(
        results["about"], images_of("posterior, sample")
    )


def inpainting_calibration_table() -> str:
    """Coverage and ranks in samples of the flow itself."""
    results = load("inpainting_calibration")
    rows = [
        [row["mask"], *(f"{row[f'coverage_{c}']:.1%}" for c in (50, 80, 90, 95))]
        + [
            f"{row[f'{name}_rank_mean']:.2f} ({row[f'{name}_rank_p']:.2g})"
            for name in ("ink", "log_p", "digit")
        ]
        for row in results["rows"]
    ]
    header = ["mask", "50 % interval", "80 %", "90 %", "95 %"]
    header += ["mean rank of the ink (p)", "of log p (p)", "of the digit (p)"]
    (count,) = {row["images"] for row in results["rows"]}
    return table(header, rows) + measured_on(
        results["about"], f"{count} samples of the flow a mask"
    )


def known_answer_table() -> str:
    """The fills of a Gaussian mixture, where the right answer is known."""
    results, rows = load("known_answer"), []
    for row in results["rows"]:
        right = f"{row['right_mode']:.2f} of {row['right_mode_exact']:.2f}"
        distance = "-" if row["travelled"] is None else f"{row['travelled']:.2f}"
        cells = [row["mask"], row["method"], f"{row['total_variation']:.3f}", right]
        cells += [
            f"{row['crps']:.4f}",
            f"{row['coverage_90']:.1%}",
            f"{row['log_p_rank_p']:.1g}",
        ]
        rows.append([*cells, distance])
    header = [
        "mask",
        "method",
        "error of the modes' weights",
        "on the right mode",
        "CRPS",
    ]
    header += ["90 % interval", "p of the rank of log p", "travelled"]
    count = f"{results['rows'][0]['images']} images a mask"
    return table(header, rows) + measured_on(results["about"], count)


def processes_table() -> str:
    """One process, one with two threads, and two."""
    results, rows = load("processes"), []
    for row in results["rows"]:
        seconds = [f"{row[way]:.0f} s" for way in ("one", "threads", "two")]
        rows.append([row["what"], *seconds, f"{row['one'] / row['two']:.2f}"])
    header = [
        "what",
        "1 process, 1 thread",
        "1 process, 2 threads",
        "2 processes",
        "gain",
    ]
    return table(header, rows) + measured_on(results["about"])


def digit_calibration_table() -> str:
    """p(digit | observed pixels) against the labels."""
    results = load("digit_calibration")
    header = ["mask", "method", "log-loss, nats", "lower than similar images' by"]
    header += ["Brier score", "accuracy"]
    rows = [
        [
            row["mask"],
            row["method"],
            f"{row['log_loss']:.2f} ± {row['log_loss_error']:.2f}",
        ]
        + [f"{row['gain']:.3f} ± {row['gain_error']:.3f}" if row["gain_error"] else "-"]
        + [f"{row['brier']:.3f}", f"{row['accuracy']:.1%}"]
        for row in results["rows"]
    ]
    count = f"the first {results['rows'][0]['images']} test images"
    return table(header, rows) + measured_on(results["about"], count)


def torture_table() -> str:
    """What came of everything that was done to the scripts."""
    results = load("torture")
    header = ["what was done", "tries", "right", *WRONG]
    rows = [
        [row["kind"], *(str(row[name]) for name in header[1:])]
        for row in results["rows"]
    ]
    minutes = f"{results['about']['seconds'] / 60:.0f} minutes"
    return table(header, rows) + measured_on(results["about"], minutes)


TABLES = {
    "results": results_table,
    "moons": moons_table,
    "steps": steps_table,
    "glow_bits": glow_bits_table,
    "glow_race": glow_race_table,
    "glow_speed": glow_speed_table,
    "inpainting": inpainting_table,
    "inpainting_map": inpainting_map_table,
    "inpainting_accuracy": inpainting_accuracy_table,
    "inpainting_crps": inpainting_crps_table,
    "inpainting_sampler": inpainting_sampler_table,
    "inpainting_calibration": inpainting_calibration_table,
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
