"""Writes the README's tables from the files in benchmarks/results, so that every number in them is one that a run has written.

    python benchmarks/tables.py

Reads    train_moons.json, train_glow_digits.json and inpaint.json (what the scripts' --metrics wrote), and moons.json, glow_bits.json,
         glow_speed.json, inpainting.json and posterior_check.json (what moons_peers.py, glow_bits.py, glow_speed.py,
         inpainting_table.py and posterior_check.py wrote)
Writes   README.md: what stands between `<!-- table NAME -->` and `<!-- end -->`
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script's own folder is on the path, the modules lie one above
from flowlib.cli import one_line_errors
from flowlib.files import ROOT, UserError, write_atomically
from flowlib.plots.moons import TITLES

RESULTS = ROOT / "benchmarks/results"
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict:
    """A results file; raises UserError if it cannot be read."""
    try:
        return json.loads((RESULTS / f"{name}.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {RESULTS / name}.json: {error}") from None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *rows))


def results_table() -> str:
    """What the three scripts reach, in how long, on what."""
    moons, inpaint = load("train_moons"), load("inpaint")
    rows = []
    for name, figures in moons["spread"].items():
        kl, seconds = figures["kl"], figures["seconds"]
        spread = f"{kl['min']:.4f} to {kl['max']:.4f} over {moons['seeds']} seeds"
        rows.append(
            [
                f"Two moons, {TITLES[name]}: KL to the truth",
                f"{kl['median']:.4f} nats",
                spread,
                f"{seconds['median']:.0f} s",
                moons["hardware"],
            ]
        )
    runs = {row["model"]: row for row in load("glow_bits")["rows"]}
    for title, glow in (
        ("MNIST, default command", runs["default command"]),
        ("MNIST, the shipped weights", runs["the shipped weights"]),
        ("8x8 digits", load("train_glow_digits")),
    ):
        spread = f"± {glow['test_bits_per_dim_se']:.3f} (standard error, {glow['test_images']:,} test images)"
        what = f"Glow on {title}, {glow['parameters']:,} parameters"
        rows.append([what, f"{glow['test_bits_per_dim']:.3f} bits/dim", spread, minutes(glow["training_seconds"]), on(glow)])
    for figures in inpaint["masks"].values():
        psnr = f"MAP {figures['map']['hole_psnr']:.1f}, posterior mean {figures['mean']['hole_psnr']:.1f} dB"
        what = f"{figures['map']['likelier_than_truth']:.0%} of {figures['images']} MAP fills likelier than the truth"
        rows.append([f"Hole PSNR, {figures['mask']}", psnr, what, f"{inpaint['seconds']:.0f} s for both", inpaint["hardware"]])
    return table(["what", "result", "spread", "time", "hardware"], rows)


def by_mask(cell: Callable[[dict], str], methods: Callable[[str], bool] = lambda method: True) -> str:
    """A row a method, a column a mask, of benchmarks/results/inpainting.json."""
    rows = [row for row in load("inpainting")["rows"] if methods(row["method"])]
    masks = list(dict.fromkeys(row["mask"] for row in rows))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["method"], {})[row["mask"]] = cell(row)
    lines = [[method, *(found.get(mask, "-") for mask in masks)] for method, found in cells.items()]
    return table(["method", *masks], lines)


def inpainting_table() -> str:
    """Hole PSNR of every method under every mask; below it, on what."""
    results = load("inpainting")
    about, counts = results["about"], {row["method"].startswith("MAP"): row["n"] for row in results["rows"]}
    images = f"the first {counts[False]} test images" + (f" (MAP: the first {counts[True]})" if True in counts else "")
    error = median(row["hole_psnr_high"] - row["hole_psnr_low"] for row in results["rows"]) / 2
    return by_mask(lambda row: f"{row['hole_psnr']:.1f}") + (
        f"\nHole PSNR in dB, {images}; 95 % bootstrap intervals in the results file, typically ± {error:.1f} dB. "
        f"{about['hardware']}; torch {about['versions']['torch']}; {about['date']}.\n"
    )


def inpainting_accuracy_table() -> str:
    """How many filled images are still the digit that they were, for the classifier."""
    left_out = ("pixel mean", "Telea", "Navier-Stokes")
    return by_mask(lambda row: f"{row['digit_accuracy']:.0%}", lambda method: method not in left_out)


def inpainting_sampler_table() -> str:
    """What the posterior's samples are worth: coverage of the truth, ink, scores, and how far the sampler has come."""
    results = load("inpainting")
    by_name = {f"test images, {row['mask']}": row for row in results["rows"] if row["method"] == "posterior, sample"}
    rows = []
    for row in results["sampler"]:
        sample = by_name.get(row["what"])
        covered = [f"{row[f'coverage_{c}']:.1%}" for c in (50, 80, 90, 95)]
        rest = [f"{sample['ink_ratio']:.2f}", f"{sample['crps']:.3f}", f"{sample['seconds_per_image']:.1f}"] if sample else ["", "", ""]
        rows.append([row["what"], str(row["n"]), *covered, *rest, f"{row['r_hat_median']:.1f}", f"{row['converged']:.0%}"])
    header = [
        "truth, mask",
        "images",
        "50 % interval",
        "80 %",
        "90 %",
        "95 %",
        "ink ratio",
        "CRPS",
        "s/image",
        "median R-hat",
        "R-hat < 1.05",
    ]
    return table(header, rows)


def posterior_check_table() -> str:
    """The posterior's samples beside those of an independent sampler."""
    results = load("posterior_check")
    rows = [
        [mask, name, f"{row['log_prob_above_truth']:+.0f}", f"{row['mean_hole_psnr']:.1f} dB", f"{row['seconds']:.0f} s"]
        for mask, found in results["results"].items()
        for name, row in found.items()
    ]
    return table(["mask", "sampler", "log p above the truth's, nats", "hole PSNR of the mean", "time, all images"], rows) + (
        f"\n`{results['about']['command']}`; {results['about']['hardware']}; {results['about']['date']}.\n"
    )


def positions_table() -> str:
    """The posterior's samples where each run draws the known pixels' position in their bins, and where one draw serves all."""
    rows = [
        [mask, name, f"{row['mean_hole_psnr']:.2f} dB", f"{row['crps']:.4f}", f"{row['coverage_90']:.1%}"]
        for mask, found in load("posterior_check")["positions"].items()
        for name, row in found.items()
    ]
    return table(["mask", "known pixels' position in their bins", "hole PSNR of the mean", "CRPS", "90 % interval"], rows)


def moons_table() -> str:
    """Ours and the peers at equal CPU time: the median over the seeds, and the range of the KL divergence; below it, on what."""
    moons = load("moons")
    rows, results, about = [], moons["rows"], moons["about"]
    order = sorted({(row["sigma"], row["model"]) for row in results}, key=lambda key: (key[0], middle(results, *key, "kl_paired")))
    for sigma, model in order:
        kl = column(results, sigma, model, "kl_paired")
        spread = f"{min(kl):.4f} to {max(kl):.4f}"
        cells = [
            f"{middle(results, sigma, model, name):{form}}"
            for name, form in (("steps", ",.0f"), ("ms_per_step", ".1f"), ("parameters", ",.0f"))
        ]
        last = [f"{middle(results, sigma, model, name):{form}}" for name, form in (("non_finite", ",.0f"), ("samples_per_second", ",.0f"))]
        mass = column(results, sigma, model, "mass")
        rows.append([f"{sigma}", model, f"{median(kl):.4f}", spread, *cells, f"{median(mass):.4f}" if mass else "not finite", *last])
    header = ["σ", "model", "KL to the truth, nats", "over the seeds", "steps", "ms/step", "parameters", "mass", "non-finite", "samples/s"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "normflows", "nflows", "zuko"))
    return table(header, rows) + f"\n{about['hardware']}, {about['seconds']:.0f} CPU seconds each; {versions}; {about['date']}.\n"


def steps_table() -> str:
    """The cost of a training step, ours against normflows' coupling of the same widths and depth."""
    rows = [
        [row["pair"], f"{row['ours_ms']:.1f}", f"{row['normflows_ms']:.1f}", f"{row['ratio']:.2f}"] for row in load("moons")["step_times"]
    ]
    return table(["12 couplings, 2x64, batch 512", "ours, ms", "normflows, ms", "ratio"], rows)


def glow_bits_table() -> str:
    """Bits/dim of each run of glow_bits.py, best last, then the published figures."""
    results = load("glow_bits")
    rows = []
    for row in results["rows"]:
        weighted = f"{row['test_bits_per_dim_weighted']:.3f}" if row["draws"] else "-"
        bits = f"{row['test_bits_per_dim']:.3f} ± {row['test_bits_per_dim_se']:.3f}"
        rows.append([row["model"], bits, weighted, f"{row['parameters']:,}", minutes(row["training_seconds"]), on(row)])
    for name, row in results["about"]["published"].items():
        rows.append([f"{name} (published)", f"{row['bits_per_dim']:g}", "", "", "", row["source"]])
    draws = max(row["draws"] or 1 for row in results["rows"])
    return table(["model", "test bits/dim", f"{draws} draws", "parameters", "training", "hardware, source"], rows)


def glow_speed_table() -> str:
    """Images per second and memory, ours beside normflows' Glow of as many blocks and channels."""
    results = load("glow_speed")
    about = results["about"]
    rows = [
        [
            row["model"],
            f"{row['parameters']:,}",
            *(f"{row[f'{task}_images_per_second']:,.0f}" for task in ("train", "score", "sample")),
            f"{row['train_ratio']:.2f}",
            f"{row['memory_mib_per_image']:.1f} MiB",
        ]
        for row in results["rows"]
    ]
    header = ["model", "parameters", "trained, images/s", "scored, images/s", "sampled, images/s", "training, ratio", "memory an image"]
    settings = f"{about['blocks']} blocks a level, {about['hidden']} channels, {about['batch']} images a step"
    return table(header, rows) + f"\n{about['hardware']}; {settings}; torch {about['versions']['torch']}; {about['date']}.\n"


def minutes(seconds: float) -> str:
    """A duration as a table wants it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def on(row: dict) -> str:
    """The hardware of a run, and its processes if there were several."""
    return row["hardware"] + (f", {row['processes']} processes" if row.get("processes", 1) > 1 else "")


def column(rows: list[dict], sigma: float, model: str, name: str) -> list[float]:
    """One figure of one model at one noise level, over the seeds, where it is finite."""
    return [row[name] for row in rows if row["sigma"] == sigma and row["model"] == model and row[name] is not None]


def middle(rows: list[dict], sigma: float, model: str, name: str) -> float:
    """Its median; nan if it is finite for no seed."""
    return median(column(rows, sigma, model, name) or [float("nan")])


TABLES = {
    "results": results_table,
    "glow_bits": glow_bits_table,
    "glow_speed": glow_speed_table,
    "inpainting": inpainting_table,
    "inpainting_accuracy": inpainting_accuracy_table,
    "inpainting_sampler": inpainting_sampler_table,
    "posterior_check": posterior_check_table,
    "positions": positions_table,
    "moons": moons_table,
    "steps": steps_table,
}


def with_tables(text: str) -> str:
    """The text with each marked table written anew."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


@one_line_errors()
def main() -> None:
    readme = ROOT / "README.md"
    text = with_tables(readme.read_text())
    write_atomically(readme, lambda temporary: temporary.write_text(text))
    print(f"wrote the tables of {readme}")


if __name__ == "__main__":
    main()
