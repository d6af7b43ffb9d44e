"""How many bits/dim the Glow reaches in how much time, on MNIST, beside published values.

    python benchmarks/glow_bits.py --data-dir DATA
    python benchmarks/glow_bits.py --figure-only     redraws the figure from the results file

It runs the commands of RUNS one after the other. If it is started again, each run goes
on where it stopped. normflows' own Glow trains as it comes, with Adam, but with our
dequantizer and schedule, for each of STOCK_STEPS. The shipped weights are not trained
again: their checkpoint holds the record of the run that made them. A classifier then
looks at 1,000 samples of each model of ours: of how many is it sure?

Writes   benchmarks/results/glow_bits.json, figures/glow_training.png; checkpoints and resume files
         in benchmarks/runs/
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
from torch import Tensor

# so that flowlib is found
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train_glow_mnist
from benchmarks.about import provenance
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
# samples that the classifier sees, and the probability of a sure one
SAMPLES, SURE = 1000, 0.9

# ---------------------------------------------------------------- runs


def run(name: str, data_dir: Path) -> dict:
    """Trains one of RUNS, unless that was done before; its metrics."""
    stem = name.replace(",", "").replace(" ", "_")
    file, checkpoint = FOLDER / f"{stem}.json", FOLDER / f"{stem}.pt"
    if not file.is_file():
        to = [
            "--figures",
            str(FOLDER),
            "--metrics",
            str(file),
            "--checkpoint",
            str(checkpoint),
        ]
        start(
            [
                *RUNS[name],
                "--dataset",
                "mnist",
                "--data-dir",
                str(data_dir),
                *to,
                "--resume",
            ]
        )
    return json.loads(file.read_text()) | {"sure_samples": sure_samples(checkpoint)}


def evaluate_shipped(data_dir: Path) -> dict:
    """The metrics of the run that made the shipped weights, and their bound with more draws."""
    checkpoint, file = SHIPPED / "glow_mnist.pt", FOLDER / "shipped.test.json"
    metrics = read_checkpoint(checkpoint, "glow")["metrics"]
    test = json.loads(file.read_text()) if file.is_file() else {}
    if test.get("training_seconds") != metrics["training_seconds"]:  # of other weights
        data = ["--dataset", "mnist", "--data-dir", str(data_dir)]
        start(["--evaluate", *data, "--metrics", str(file)])
        test = json.loads(file.read_text())
    metrics |= {key: test[key] for key in test if key.startswith(("test_", "draws"))}
    return metrics | {"sure_samples": sure_samples(checkpoint)}


def start(flags: list[str]) -> None:
    """Runs train_glow_mnist.py; raises UserError if it fails."""
    command = [sys.executable, "train_glow_mnist.py", *flags]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise UserError(
            f"{shlex.join(command)} failed: see above; start again to go on"
        )


def run_stock(data_dir: Path, steps: int) -> dict:
    """Trains normflows' own Glow for so many steps as train_glow_mnist.py trains ours."""
    file, device = FOLDER / f"stock_{steps}.json", torch.device("cpu")
    if not file.is_file():
        images, settings = (
            load_images("mnist", data_dir),
            train_glow_mnist.Settings(steps=steps),
        )
        torch.manual_seed(settings.seed)
        model = StockGlow()
        model.initialize(images.train[:512], rng(settings.seed, "initialize"))
        adam = torch.optim.Adam(model.parameters(), STOCK_LR, fused=True)
        state = TrainingState(model, [adam])
        with processes(device) as group:
            resume_file = resume_path(FOLDER / f"stock_{steps}.pt")
            load_resume(state, resume_file, asdict(settings))
            train_glow_mnist.fit_glow(state, images, settings, group, resume_file)
        bits, error = train_glow_mnist.measure_bits(state.averaged, images.test)
        metrics = {
            "test_bits_per_dim": bits,
            "test_bits_per_dim_se": error,
            "curve": state.curve,
        }
        metrics["parameters"] = sum(
            parameter.numel() for parameter in model.parameters()
        )
        metrics |= {
            "training_seconds": round(state.seconds, 1),
            "test_images": len(images.test),
        }
        metrics |= {"steps": steps, "batch": settings.batch, "processes": 1}
        write_metrics(
            file, metrics, seconds=state.seconds, device=device, seed=settings.seed
        )
    return json.loads(file.read_text())


def sure_share(images: Tensor, classifier: Classifier) -> float:
    """The share of images, (N, 1, H, W), that the classifier gives one class more than SURE."""
    return (classifier.classify(images).amax(1) > SURE).float().mean().item()


def sure_samples(checkpoint: Path) -> float:
    """`sure_share` of a model's samples at temperature 1."""
    glow, classifier = (
        load_glow(checkpoint),
        load_classifier(SHIPPED / "classifier_mnist.pt"),
    )
    return sure_share(
        glow.quantize(glow.sample(SAMPLES, rng(0, "sure samples"))), classifier
    )


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
        if reached:
            seconds, run = min(reached)
            rival = {"peer": peer["model"], "held_out": best["held_out"]}
            races.append(
                rival
                | {"peer_seconds": best["seconds"], "seconds": seconds, "run": run}
            )
    return races


def make_row(name: str, metrics: dict) -> dict:
    """A flat row of the results file, and the held-out curve."""
    keys = [
        "test_bits_per_dim",
        "test_bits_per_dim_se",
        "test_bits_per_dim_weighted",
        "draws",
    ]
    keys += [
        "test_images",
        "parameters",
        "training_seconds",
        "steps",
        "batch",
        "processes",
    ]
    keys += ["hardware", "sure_samples", "curve"]
    return {"model": name, **{key: metrics.get(key) for key in keys}}


def measure_all(data_dir: Path) -> dict:
    """The content of the results file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for steps in STOCK_STEPS:
        rows.append(
            make_row(f"normflows' Glow, {steps:,} steps", run_stock(data_dir, steps))
        )
    rows += [make_row(name, run(name, data_dir)) for name in RUNS]
    rows.append(make_row("the shipped weights", evaluate_shipped(data_dir)))
    test = load_images("mnist", data_dir).test[:SAMPLES]
    published = {
        name: {"bits_per_dim": bits, "source": source}
        for name, (bits, source) in PUBLISHED.items()
    }
    about = provenance(["python", "benchmarks/glow_bits.py"], torch.device("cpu"))
    about["runs"] = {
        name: shlex.join(["train_glow_mnist.py", *RUNS[name]]) for name in RUNS
    }
    about["sure_test_images"] = sure_share(
        test, load_classifier(SHIPPED / "classifier_mnist.pt")
    )
    return {"about": about | {"published": published}, "rows": rows, "race": race(rows)}


# ---------------------------------------------------------------- figure and command line


def training_figure(results: dict):
    """Held-out bits/dim of each run against its seconds, a dot for the test images.

    The published values are dashed lines. Lines closer than 0.025 share a label, which
    would otherwise be printed over its neighbor.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    panel = figure.subplots()
    for row in results["rows"]:
        seconds = [point["seconds"] for point in row["curve"]]
        bits = [point["held_out"] for point in row["curve"]]
        label = f"{row['model']} ({row['hardware'].partition(',')[0]})"
        (line,) = panel.plot(seconds, bits, linewidth=1.3, label=label)
        test = (row["training_seconds"], row["test_bits_per_dim"])
        panel.plot(*test, "o", color=line.get_color(), markersize=5)
    right = max(row["training_seconds"] for row in results["rows"]) * 1.15
    for values, label in published_labels(results["about"]["published"]):
        for bits in values:
            panel.axhline(bits, color="0.6", linewidth=0.8, linestyle="--")
        middle = sum(values) / len(values)
        panel.text(right, middle, label, fontsize=9, va="center", color="0.35")
    panel.set(xscale="log", xlim=(10, right), ylim=(0.79, 1.3))
    panel.set(xlabel="seconds of training")
    panel.set_ylabel("bits per dimension")
    what = (
        "averaged weights on 1,000 held-out images (lines), on the test images (dots)"
    )
    panel.set_title(f"MNIST: {what}, published values (dashed)", fontsize=10)
    panel.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.04))
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def published_labels(published: dict) -> list[tuple[list[float], str]]:
    """The published values in groups that are less than 0.025 apart, and a label for each group."""
    groups = []
    for name, row in sorted(
        published.items(), key=lambda item: -item[1]["bits_per_dim"]
    ):
        bits = row["bits_per_dim"]
        if not groups or groups[-1][0][-1] - bits > 0.025:
            groups.append(([], []))
        values, names = groups[-1]
        values.append(bits)
        names.append(f" {name}: {bits:g}")
    return [(sorted(set(values)), "\n".join(names)) for values, names in groups]


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, results = parser.add_argument, ROOT / "benchmarks/results/glow_bits.json"
    add(
        "--data-dir",
        type=Path,
        default=ROOT / "data",
        help="where MNIST lies (default data/)",
    )
    add(
        "--figures",
        type=Path,
        metavar="FOLDER",
        default=ROOT / "figures",
        help="(figures/)",
    )
    add("--output", type=Path, metavar="FILE", default=results, help="the results file")
    add(
        "--figure-only",
        action="store_true",
        help="only redraw the figure from the results file",
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    if not args.figure_only:
        results = measure_all(args.data_dir.resolve())
        write_json(args.output, results)
        for row in results["rows"]:
            bits = f"{row['test_bits_per_dim']:.4f} ± {row['test_bits_per_dim_se']:.4f}"
            weighted = row["test_bits_per_dim_weighted"] or math.nan
            size = (
                f"{row['training_seconds']:,.0f} s   {row['parameters']:,} parameters"
            )
            print(
                f"{row['model']:40} {bits}   {row['draws'] or 1} draws {weighted:.4f}   {size}"
            )
    results = json.loads(args.output.read_text())
    save_figure(training_figure(results), args.figures, "glow_training.png")


if __name__ == "__main__":
    main()
