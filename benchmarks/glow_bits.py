"""How many bits/dim the Glow reaches in how much time, on MNIST, beside published values.

    python benchmarks/glow_bits.py --data-dir DATA
    python benchmarks/glow_bits.py --figure-only     redraws the figure from the results file

It runs the commands of RUNS one after the other, then --evaluate for each. If it is started again,
each run goes on where it stopped. normflows' own Glow trains with the same dequantizer, optimizer
and schedule, as long as the shortest run. The shipped weights are not trained again: their
checkpoint holds the record of the run that made them.

Writes   benchmarks/results/glow_bits.json, figures/glow_training.png; checkpoints and resume files
         in benchmarks/runs/
Takes    about an hour on 2 CPU cores; nothing else should run meanwhile
"""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that flowlib is found
import train_glow_mnist
from benchmarks.about import provenance
from benchmarks.stock_glow import StockGlow
from flowlib.cli import Parser, one_line_errors
from flowlib.distributed import processes
from flowlib.files import ROOT, UserError, read_checkpoint, save_figure, write_json, write_metrics
from flowlib.images.datasets import load_images
from flowlib.images.glow import default_checkpoint
from flowlib.rng import rng
from flowlib.training import TrainingState, resume_path

FOLDER = ROOT / "benchmarks/runs"
RUNS = {  # name: the script's flags
    "1,500 steps, uniform noise": ["--steps", "1500", "--dequantizer", "0"],
    "1,500 steps": ["--steps", "1500"],
    "default command": [],
}
STOCK, STOCK_STEPS = "normflows' Glow as it comes, 2,000 steps", 2000
PUBLISHED = {  # bits/dim and where from
    "Real NVP": (1.06, "Dinh et al. (2017), as given by Chen et al. (2019)"),
    "Glow": (1.05, "Kingma and Dhariwal (2018), as given by Chen et al. (2019)"),
    "UvA tutorial 11, multi-scale": (
        1.020,
        "8-draw bound; 1.71M parameters; 58 to 137 minutes on an RTX 3090",
    ),
    "FFJORD": (0.99, "Grathwohl et al. (2019)"),
    "Residual Flow": (0.97, "Chen et al. (2019)"),
    "RNODE": (0.97, "Finlay et al. (2020)"),
}

# ---------------------------------------------------------------- runs


def run(name: str, data_dir: Path) -> dict:
    """Trains and evaluates one of RUNS, unless that was done before; its metrics."""
    stem = name.replace(",", "").replace(" ", "_")
    endings = (".json", ".test.json", ".pt")
    trained, tested, checkpoint = (FOLDER / f"{stem}{ending}" for ending in endings)
    data = ["--dataset", "mnist", "--data-dir", str(data_dir), "--checkpoint", str(checkpoint)]
    if not trained.is_file():
        to = ["--figures", str(FOLDER), "--metrics", str(trained)]
        start([*RUNS[name], *data, *to, "--resume"])
    if not tested.is_file():
        start(["--evaluate", *data, "--metrics", str(tested)])
    metrics, test = json.loads(trained.read_text()), json.loads(tested.read_text())
    return metrics | {key: test[key] for key in test if key.startswith(("test_", "draws"))}


def start(flags: list[str]) -> None:
    """Runs train_glow_mnist.py; raises UserError if it fails."""
    command = [sys.executable, "train_glow_mnist.py", *flags]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise UserError(f"{shlex.join(command)} failed: see above; start again to go on")


def run_stock(data_dir: Path, steps: int = STOCK_STEPS) -> dict:
    """Trains normflows' own Glow as train_glow_mnist.py trains ours; its metrics."""
    file, device = FOLDER / "stock.json", torch.device("cpu")
    if not file.is_file():
        images, settings = load_images("mnist", data_dir), train_glow_mnist.Settings(steps=steps)
        torch.manual_seed(settings.seed)
        model = StockGlow()
        model.initialize(images.train[:512], rng(settings.seed, "initialize"))
        state = TrainingState(model, settings.lr)
        with processes(device) as group:
            resume_file = resume_path(FOLDER / "stock.pt")
            train_glow_mnist.fit_glow(state, images, settings, group, resume_file)
        bits, error = train_glow_mnist.measure_bits(state.averaged, images.test, show=True)
        metrics = {"test_bits_per_dim": bits, "test_bits_per_dim_se": error, "curve": state.curve}
        metrics["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        metrics |= {"training_seconds": round(state.seconds, 1), "test_images": len(images.test)}
        metrics |= {"steps": steps, "batch": settings.batch, "processes": 1}
        write_metrics(file, metrics, seconds=state.seconds, device=device, seed=settings.seed)
    return json.loads(file.read_text())


def make_row(name: str, metrics: dict) -> dict:
    """A flat row of the results file, and the held-out curve."""
    keys = ["test_bits_per_dim", "test_bits_per_dim_se", "test_bits_per_dim_weighted", "draws"]
    keys += ["test_images", "parameters", "training_seconds", "steps", "batch", "processes"]
    keys += ["hardware", "curve"]
    return {"model": name, **{key: metrics.get(key) for key in keys}}


def measure_all(data_dir: Path) -> dict:
    """The content of the results file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [make_row(STOCK, run_stock(data_dir))]
    rows += [make_row(name, run(name, data_dir)) for name in RUNS]
    shipped = read_checkpoint(default_checkpoint("mnist"), "glow")["metrics"]
    rows.append(make_row("the shipped weights", shipped))
    published = {
        name: {"bits_per_dim": bits, "source": source} for name, (bits, source) in PUBLISHED.items()
    }
    about = provenance(["python", "benchmarks/glow_bits.py"], torch.device("cpu"))
    about["runs"] = {name: shlex.join(["train_glow_mnist.py", *RUNS[name]]) for name in RUNS}
    return {"about": about | {"published": published}, "rows": rows}


# ---------------------------------------------------------------- figure and command line


def training_figure(results: dict):
    """Held-out bits/dim of each run against its seconds, a dot for the test images.

    The published values are dashed lines. Lines closer than 0.015 share a label, which would
    otherwise be printed over its neighbor.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    panel = figure.subplots()
    for row in results["rows"]:
        seconds = [point["seconds"] for point in row["curve"]]
        bits = [point["held_out"] for point in row["curve"]]
        (line,) = panel.plot(seconds, bits, linewidth=1.3, label=row["model"])
        test = (row["training_seconds"], row["test_bits_per_dim"])
        panel.plot(*test, "o", color=line.get_color(), markersize=5)
    right = max(row["training_seconds"] for row in results["rows"]) * 1.15
    for values, label in published_labels(results["about"]["published"]):
        for bits in values:
            panel.axhline(bits, color="0.6", linewidth=0.8, linestyle="--")
        middle = sum(values) / len(values)
        panel.text(right, middle, label, fontsize=9, va="center", color="0.35")
    panel.set(xscale="log", xlim=(20, right), ylim=(0.95, 1.35))
    panel.set(xlabel="seconds of training on CPU cores", ylabel="bits per dimension")
    what = "averaged weights on 1,000 held-out images (lines), on the test images (dots)"
    panel.set_title(f"MNIST: {what}, published values (dashed)", fontsize=10)
    panel.legend(fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def published_labels(published: dict) -> list[tuple[list[float], str]]:
    """The published values in groups that are less than 0.015 apart, and a label for each group."""
    groups = []
    for name, row in sorted(published.items(), key=lambda item: -item[1]["bits_per_dim"]):
        bits = row["bits_per_dim"]
        if not groups or groups[-1][0][-1] - bits > 0.015:
            groups.append(([], []))
        values, names = groups[-1]
        values.append(bits)
        names.append(f" {name}: {bits:g}")
    return [(sorted(set(values)), "\n".join(names)) for values, names in groups]


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, results = parser.add_argument, ROOT / "benchmarks/results/glow_bits.json"
    add("--data-dir", type=Path, default=ROOT / "data", help="where MNIST lies (default data/)")
    add("--figures", type=Path, metavar="FOLDER", default=ROOT / "figures", help="(figures/)")
    add("--output", type=Path, metavar="FILE", default=results, help="the results file")
    add("--figure-only", action="store_true", help="only redraw the figure from the results file")
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
            size = f"{row['training_seconds']:,.0f} s   {row['parameters']:,} parameters"
            print(f"{row['model']:40} {bits}   {row['draws'] or 1} draws {weighted:.4f}   {size}")
    results = json.loads(args.output.read_text())
    save_figure(training_figure(results), args.figures, "glow_training.png")


if __name__ == "__main__":
    main()
