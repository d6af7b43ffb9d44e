"""How many bits/dim does the Glow reach on MNIST, in how much time?

    python -m benchmarks.glow_bits --data-dir DATA
    python -m benchmarks.glow_bits --figure-only     redraws the figure from the results

It runs the commands of RUNS one after the other. If it is started again, each run goes
on where it stopped. normflows' own Glow trains as it comes, with Adam, but with our
dequantizer and schedule, for each of STOCK_STEPS. The shipped weights are not trained
again: their checkpoint holds the record of the run that made them. A classifier
then looks at 1,000 samples of each model of ours: of how many is it sure? Published
values stand beside all of them.

Writes   benchmarks/results/glow_bits.json, figures/glow_training.png; checkpoints and
         resume files in benchmarks/runs/
Takes    an hour and a half on one CPU core; nothing else should run on it meanwhile
"""

import json
import math
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import train_glow_mnist
from benchmarks.about import (
    add_data_flag,
    add_figures_flag,
    add_output_flag,
    command_of,
    provenance,
)
from benchmarks.markdown import duration, load, run_on, table
from benchmarks.stock_glow import StockGlow
from flowlib.cli import Parser, one_line_errors
from flowlib.distributed import processes
from flowlib.files import (
    ROOT,
    SHIPPED,
    UserError,
    read_checkpoint,
    save_figure,
    write_json,
    write_metrics,
)
from flowlib.images.classifier import Classifier, load_classifier
from flowlib.images.datasets import load_images
from flowlib.images.glow import load_glow
from flowlib.rng import rng
from flowlib.training import TrainingState, load_resume, resume_path

FOLDER = ROOT / "benchmarks/runs"
RUNS = {  # name: the script's flags
    "400 steps": ["--steps", "400"],
    "1,200 steps": ["--steps", "1200"],
    "default command": [],
}
STOCK_STEPS = (2000,)
STOCK_LR = 4e-3  # of Adam, as its examples train it, at a rate that suits it
PUBLISHED = {  # bits/dim and where from
    "Real NVP": (1.06, "Dinh et al. (2017), as given by Chen et al. (2019)"),
    "Glow": (1.05, "Kingma and Dhariwal (2018), as given by Chen et al. (2019)"),
    "UvA tutorial 11": (
        1.02,
        "bound, 8 draws; 1.71M parameters; 58 to 137 min on an RTX 3090",
    ),
    "FFJORD": (0.99, "Grathwohl et al. (2019)"),
    "Residual Flow": (
        0.97,
        "Chen et al. (2019); keeps the weights with the best test score",
    ),
    "RNODE": (0.97, "Finlay et al. (2020)"),
    "ANF": (0.93, "bound; Huang et al. (2020), quoted second hand"),
    "PixelCNN, no flow": (
        0.81,
        "UvA tutorial 12: autoregressive; 852,160 parameters, 150 epochs",
    ),
}
SAMPLES = 1000  # that the classifier sees
SURE = 0.9  # the probability of a sure one
GOAL = 1.05  # bits/dim, the published Glow's

# ---------------------------------------------------------------- runs


def run(name: str, data_dir: Path) -> dict:
    """Trains one of RUNS, unless that was done before; its metrics."""
    stem = name.replace(",", "").replace(" ", "_")
    file = FOLDER / f"{stem}.json"
    checkpoint = FOLDER / f"{stem}.pt"

    if not file.is_file():
        data = ["--dataset", "mnist", "--data-dir", data_dir]
        output = ["--figures", FOLDER, "--metrics", file, "--checkpoint", checkpoint]
        start([*RUNS[name], *data, *output, "--resume"])
    return json.loads(file.read_text()) | {"sure_samples": sure_samples(checkpoint)}


def evaluate_shipped(data_dir: Path) -> dict:
    """The metrics of the shipped weights' run, and a bound with more draws."""
    checkpoint = SHIPPED / "glow_mnist.pt"
    file = FOLDER / "shipped.test.json"
    metrics = read_checkpoint(checkpoint, "glow")["metrics"]

    # An evaluation of other weights does not count.
    test = json.loads(file.read_text()) if file.is_file() else {}
    if test.get("training_seconds") != metrics["training_seconds"]:
        data = ["--dataset", "mnist", "--data-dir", data_dir]
        start(["--evaluate", *data, "--metrics", file])
        test = json.loads(file.read_text())

    metrics |= {key: test[key] for key in test if key.startswith(("test_", "draws"))}
    return metrics | {"sure_samples": sure_samples(checkpoint)}


def start(flags: list) -> None:
    """Runs train_glow_mnist.py; raises UserError if it fails."""
    command = [sys.executable, "train_glow_mnist.py", *map(str, flags)]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        remedy = "see above; start again to go on"
        raise UserError(f"{shlex.join(command)} failed: {remedy}")


def run_stock(data_dir: Path, steps: int) -> dict:
    """Trains normflows' own Glow as train_glow_mnist.py trains ours; its metrics."""
    file = FOLDER / f"stock_{steps}.json"
    if file.is_file():
        return json.loads(file.read_text())

    device = torch.device("cpu")
    images = load_images("mnist", data_dir)
    settings = train_glow_mnist.Settings(steps=steps)
    torch.manual_seed(settings.seed)
    model = StockGlow()
    model.initialize(images.train[:512], rng(settings.seed, "initialize"))
    adam = torch.optim.Adam(model.parameters(), STOCK_LR, fused=True)

    state = TrainingState(model, [adam])
    with processes(device) as group:
        resume_file = resume_path(FOLDER / f"stock_{steps}.pt")
        load_resume(state, resume_file, asdict(settings), images.made_from)
        train_glow_mnist.fit_glow(state, images, settings, group, resume_file)

    bits, error = train_glow_mnist.measure_bits(state.averaged, images.test)
    metrics = {
        "test_bits_per_dim": bits,
        "test_bits_per_dim_se": error,
        "curve": state.curve,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": round(state.seconds, 1),
        "test_images": len(images.test),
        "steps": steps,
        "batch": settings.batch,
        "processes": 1,
    }
    seed = settings.seed
    write_metrics(file, metrics, seconds=state.seconds, device=device, seed=seed)
    return json.loads(file.read_text())


def sure_share(images: Tensor, classifier: Classifier) -> float:
    """The share of images, (N, 1, H, W), of whose class the classifier is SURE."""
    return (classifier.classify(images).amax(1) > SURE).float().mean().item()


def sure_samples(checkpoint: Path) -> float:
    """`sure_share` of a model's samples at temperature 1."""
    glow = load_glow(checkpoint)
    classifier = load_classifier(SHIPPED / "classifier_mnist.pt")
    samples = glow.sample(SAMPLES, rng(0, "sure samples"))
    return sure_share(glow.quantize(samples), classifier)


def race(rows: list[dict]) -> list[dict]:
    """When ours first reach what normflows' Glow reaches at best, in each of its runs.

    Of ours the fastest run counts. Both are held-out bits/dim of the averaged weights.
    """
    races = []
    for peer in (row for row in rows if row["model"].startswith("normflows")):
        best = min(peer["curve"], key=lambda point: point["held_out"])
        reached = [
            (point["seconds"], row["model"])
            for row in rows
            if row["model"] in RUNS and row["hardware"] == peer["hardware"]
            for point in row["curve"]
            if point["held_out"] <= best["held_out"]
        ]
        if not reached:
            continue

        seconds, run = min(reached)
        found = {
            "peer": peer["model"],
            "held_out": best["held_out"],
            "peer_seconds": best["seconds"],
            "seconds": seconds,
            "run": run,
        }
        races.append(found)
    return races


def make_row(name: str, metrics: dict) -> dict:
    """A flat row of the results file, and the held-out curve."""
    keys = (
        "test_bits_per_dim",
        "test_bits_per_dim_se",
        "test_bits_per_dim_weighted",
        "draws",
        "test_images",
        "parameters",
        "training_seconds",
        "steps",
        "batch",
        "processes",
        "hardware",
        "sure_samples",
        "curve",
    )

    return {"model": name, **{key: metrics.get(key) for key in keys}}


def shipped_rows(metrics: dict) -> list[dict]:
    """The shipped weights' row; before it that of the run that theirs goes on from."""
    row = make_row("the shipped weights", metrics)
    earlier = metrics.get("started_from")
    if not earlier:
        return [row]
    first = make_row(f"{earlier['steps']:,} steps of {earlier['batch']}", earlier)
    return [first, row | {"goes_on_from": first["model"]}]


def measure_all(data_dir: Path) -> dict:
    """The content of the results file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for steps in STOCK_STEPS:
        name = f"normflows' Glow, {steps:,} steps"
        rows.append(make_row(name, run_stock(data_dir, steps)))
    for name in RUNS:
        rows.append(make_row(name, run(name, data_dir)))
    rows += shipped_rows(evaluate_shipped(data_dir))

    about = provenance(command_of("glow_bits"), torch.device("cpu"))
    about["runs"] = {}
    for name, flags in RUNS.items():
        about["runs"][name] = shlex.join(["train_glow_mnist.py", *flags])
    test = load_images("mnist", data_dir).test[:SAMPLES]
    classifier = load_classifier(SHIPPED / "classifier_mnist.pt")
    about["sure_test_images"] = sure_share(test, classifier)
    about["published"] = {}
    for name, (bits, source) in PUBLISHED.items():
        about["published"][name] = {"bits_per_dim": bits, "source": source}
    return {"about": about, "rows": rows, "race": race(rows)}


# ---------------------------------------------------------------- tables


def glow_bits_table() -> str:
    """Bits/dim of each run, best last, then the published ones."""
    results = load("glow_bits")
    rows = []
    for row in results["rows"]:
        bits = f"{row['test_bits_per_dim']:.3f} ± {row['test_bits_per_dim_se']:.3f}"
        weighted = f"{row['test_bits_per_dim_weighted']:.3f}" if row["draws"] else "-"
        sure = f"{row['sure_samples']:.0%}" if row["sure_samples"] else "-"
        time = duration(row["training_seconds"])
        if "goes_on_from" in row:
            time += " more"
        cost = [f"{row['parameters']:,}", time]
        rows.append([row["model"], bits, weighted, sure, *cost, run_on(row)])

    about = results["about"]
    for name, row in about["published"].items():
        bound = "≤ " if row["source"].startswith("bound") else ""
        bits = f"{bound}{row['bits_per_dim']:.2f}"
        rows.append([f"{name} (published)", bits, "", "", "", "", row["source"]])
    rows.append(["test images", "", "", f"{about['sure_test_images']:.0%}", "", "", ""])

    draws = max(row["draws"] or 1 for row in results["rows"])
    header = ["model", "test bits/dim", f"{draws} draws", "sure digits"]
    header += ["parameters", "training", "hardware, source"]
    return table(header, rows)


def glow_race_table() -> str:
    """How long normflows' Glow and ours take to the best that it reaches."""
    rows = []
    for found in load("glow_bits")["race"]:
        times = [f"{found[name]:,.0f} s" for name in ("peer_seconds", "seconds")]
        ratio = f"{found['peer_seconds'] / found['seconds']:.1f}"
        rows.append([found["peer"], f"{found['held_out']:.3f}", *times, ratio])

    header = ["normflows' run", "its best held-out bits/dim"]
    header += ["it takes", "ours takes", "ratio"]
    return table(header, rows)


def times_to_goal() -> dict[str, float]:
    """On each hardware, the seconds after which one of our runs first reached GOAL."""
    reached: dict[str, float] = {}
    for row in load("glow_bits")["rows"]:
        if row["model"].startswith("normflows") or "goes_on_from" in row:
            continue
        where = run_on(row)
        for point in row["curve"]:
            if point["held_out"] <= GOAL:
                reached[where] = min(point["seconds"], reached.get(where, math.inf))
    return reached


# ---------------------------------------------------------------- figure


def training_figure(results: dict) -> Figure:
    """Held-out bits/dim of each run against its seconds, a dot for the test images.

    The published values are dashed lines. Lines closer than 0.025 share a label, which
    would otherwise be printed over its neighbor.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    panel = figure.subplots()
    ends = {None: 0}  # the seconds after which a run was complete
    for row in results["rows"]:
        before = ends[row.get("goes_on_from")]
        ends[row["model"]] = before + row["training_seconds"]
        seconds = [before + point["seconds"] for point in row["curve"]]
        bits = [point["held_out"] for point in row["curve"]]
        label = f"{row['model']} ({row['hardware'].partition(',')[0]})"
        (line,) = panel.plot(seconds, bits, linewidth=1.3, label=label)
        test = (ends[row["model"]], row["test_bits_per_dim"])
        panel.plot(*test, "o", color=line.get_color(), markersize=5)

    # The published values, with their names beside the right edge.
    right = max(ends.values()) * 1.15
    for values, label in published_labels(results["about"]["published"]):
        for bits in values:
            panel.axhline(bits, color="0.6", linewidth=0.8, linestyle="--")
        height = sum(values) / len(values)
        panel.text(right, height, label, fontsize=9, va="center", color="0.35")

    panel.set(xscale="log", xlim=(10, right), ylim=(0.79, 1.3))
    panel.set(xlabel="seconds of training", ylabel="bits per dimension")
    lines = "averaged weights on 1,000 held-out images (lines)"
    dots = "on the test images (dots), published values (dashed)"
    panel.set_title(f"MNIST: {lines}, {dots}", fontsize=10)
    panel.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.04))
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def published_labels(published: dict) -> list[tuple[list[float], str]]:
    """The published values in groups less than 0.025 apart, with a label for each."""
    groups: list[tuple[list[float], list[str]]] = []
    downwards = sorted(published.items(), key=lambda item: -item[1]["bits_per_dim"])
    for name, row in downwards:
        bits = row["bits_per_dim"]
        if not groups or groups[-1][0][-1] - bits > 0.025:
            groups.append(([], []))

        values, names = groups[-1]
        values.append(bits)
        names.append(f" {name}: {bits:g}")
    return [(sorted(set(values)), "\n".join(names)) for values, names in groups]


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_data_flag(parser)
    add_figures_flag(parser)
    add_output_flag(parser, "glow_bits")
    only = "only redraw the figure from the results file"
    parser.add_argument("--figure-only", action="store_true", help=only)
    return parser.parse_args(argv)


def print_rows(rows: list[dict]) -> None:
    """A line for each run."""
    for row in rows:
        bits = f"{row['test_bits_per_dim']:.4f} ± {row['test_bits_per_dim_se']:.4f}"
        weighted = row["test_bits_per_dim_weighted"] or math.nan
        draws = f"{row['draws'] or 1} draws {weighted:.4f}"
        cost = f"{row['training_seconds']:,.0f} s   {row['parameters']:,} parameters"
        print(f"{row['model']:40} {bits}   {draws}   {cost}")


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    if not args.figure_only:
        results = measure_all(args.data_dir.resolve())
        write_json(args.output, results)
        print_rows(results["rows"])

    results = json.loads(args.output.read_text())
    save_figure(training_figure(results), args.figures, "glow_training.png")


if __name__ == "__main__":
    main()
