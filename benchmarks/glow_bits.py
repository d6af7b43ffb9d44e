"""What the Glow reaches in how much time: bits/dim on MNIST's 10,000 test images, beside the published figures.

    python benchmarks/glow_bits.py --data-dir DATA

runs the commands of RUNS one after the other (each goes on where it stopped if this is started again), then --evaluate for each, and
normflows' own Glow with the same dequantiser, optimiser, schedule and time as the shortest run. The shipped weights are not trained
again: their checkpoint holds the record of the run that made them.

Writes   benchmarks/results/glow_bits.json, figures/glow_training.png; checkpoints and resume files in benchmarks/runs/
Takes    about an hour on 2 CPU cores; nothing else should run meanwhile
"""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script's own folder is on the path, the modules lie one above
import train_glow_mnist
from benchmarks.stock_glow import StockGlow
from flowlib.cli import Parser, one_line_errors
from flowlib.distributed import processes
from flowlib.files import ROOT, UserError, load_checkpoint, provenance, save_figure, write_atomically, write_metrics
from flowlib.images.datasets import load_images
from flowlib.images.glow import default_checkpoint
from flowlib.training import TrainingState, generator_for, resume_path

FOLDER = ROOT / "benchmarks/runs"
RUNS = {  # name: the script's flags
    "1,500 steps, uniform noise": ["--steps", "1500", "--dequantiser", "0"],
    "1,500 steps": ["--steps", "1500"],
    "default command": [],
}
STOCK, STOCK_STEPS = "normflows' Glow as it comes, 2,000 steps", 2000
PUBLISHED = {  # bits/dim and where from
    "Real NVP": (1.06, "Dinh et al. (2017), as given by Chen et al. (2019)"),
    "Glow": (1.05, "Kingma and Dhariwal (2018), as given by Chen et al. (2019)"),
    "UvA tutorial 11, multi-scale": (1.020, "8-draw bound; 1.71M parameters; 58 to 137 minutes on an RTX 3090"),
    "FFJORD": (0.99, "Grathwohl et al. (2019)"),
    "Residual Flow": (0.97, "Chen et al. (2019)"),
    "RNODE": (0.97, "Finlay et al. (2020)"),
}

# ---------------------------------------------------------------- runs


def run(name: str, data_dir: Path) -> dict:
    """Trains and evaluates one of RUNS, unless that was done before; its metrics."""
    stem = name.replace(",", "").replace(" ", "_")
    trained, tested, checkpoint = (FOLDER / f"{stem}{ending}" for ending in (".json", ".test.json", ".pt"))
    data = ["--dataset", "mnist", "--data-dir", str(data_dir), "--checkpoint", str(checkpoint), "--figures", str(FOLDER)]
    if not trained.is_file():
        start([*RUNS[name], *data, "--resume", "--metrics", str(trained)])
    if not tested.is_file():
        start(["--evaluate", *data, "--metrics", str(tested)])
    return json.loads(trained.read_text()) | {
        key: value for key, value in json.loads(tested.read_text()).items() if key.startswith(("test_", "draws"))
    }


def start(flags: list[str]) -> None:
    """Runs train_glow_mnist.py; raises UserError if it fails."""
    command = [sys.executable, "train_glow_mnist.py", *flags]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise UserError(f"{shlex.join(command)} failed: see above; start again to go on")


def run_stock(data_dir: Path) -> dict:
    """Trains normflows' own Glow as train_glow_mnist.py trains ours."""
    file = FOLDER / "stock.json"
    if not file.is_file():
        images, device = load_images("mnist", data_dir), torch.device("cpu")
        torch.manual_seed(0)
        model = StockGlow()
        model.initialise(images.train[:512], generator_for(0, 0))
        state = TrainingState(model, lr=4e-3)
        args = SimpleNamespace(steps=STOCK_STEPS, batch=32, seed=0, max_minutes=None, save_minutes=5, metrics=None)
        with processes(device) as group:
            train_glow_mnist.fit(state, images, args, group, resume_path(FOLDER / "stock.pt"), {})
        test = train_glow_mnist.evaluate(state.averaged, images.test)
        metrics = {"test_bits_per_dim": test["bits_per_dim"], "test_bits_per_dim_se": test["standard_error"], "curve": state.curve}
        metrics |= {"parameters": sum(p.numel() for p in model.parameters()), "training_seconds": round(state.seconds, 1)}
        metrics |= {"steps": STOCK_STEPS, "batch": 32, "processes": 1, "test_images": len(images.test)}
        write_metrics(file, metrics, seconds=state.seconds, device=device, seed=0)
    return json.loads(file.read_text())


def row(name: str, metrics: dict) -> dict:
    """A flat row of the results file, the held-out curve beside it."""
    keys = ("test_bits_per_dim", "test_bits_per_dim_se", "test_bits_per_dim_weighted", "draws", "test_images")
    keys += ("parameters", "training_seconds", "steps", "batch", "processes", "hardware", "curve")
    return {"model": name, **{key: metrics.get(key) for key in keys}}


# ---------------------------------------------------------------- figure


def training_figure(rows: list[dict]) -> Figure:
    """Held-out bits/dim of each run against its seconds, a dot for the test images, and the published figures as lines."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    panel = figure.subplots()
    for line in rows:
        seconds, bits = [point["seconds"] for point in line["curve"]], [point["held_out"] for point in line["curve"]]
        (drawn,) = panel.plot(seconds, bits, linewidth=1.3, label=line["model"])
        panel.plot(line["training_seconds"], line["test_bits_per_dim"], "o", color=drawn.get_color(), markersize=5)
    right = max(line["training_seconds"] for line in rows) * 1.15
    for bits in sorted({bits for bits, _ in PUBLISHED.values()}):
        names = ", ".join(name for name, (value, _) in PUBLISHED.items() if value == bits)
        panel.axhline(bits, color="0.6", linewidth=0.8, linestyle="--")
        panel.text(right, bits, f" {names}: {bits:g}", fontsize=7, va="center", color="0.35")
    panel.set(xscale="log", xlim=(20, right), ylim=(0.95, 1.4), xlabel="seconds of training on CPU cores", ylabel="bits per dimension")
    panel.set_title("MNIST: averaged weights on 1,000 held-out images (lines), test images (dots), published (dashed)", fontsize=10)
    panel.legend(fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where MNIST lies (default data/)")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", default=ROOT / "figures", help="default figures/")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", default=ROOT / "benchmarks/results/glow_bits.json", help="default %(default)s"
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data_dir = args.data_dir.resolve()
    rows = [row(STOCK, run_stock(data_dir)), *(row(name, run(name, data_dir)) for name in RUNS)]
    rows.append(row("the shipped weights", load_checkpoint(default_checkpoint("mnist"), "glow")["metrics"]))
    about = {
        **provenance(["python", "benchmarks/glow_bits.py"], torch.device("cpu")),
        "runs": {name: shlex.join(["train_glow_mnist.py", *flags]) for name, flags in RUNS.items()},
        "published": {name: {"bits_per_dim": bits, "source": source} for name, (bits, source) in PUBLISHED.items()},
    }
    write_atomically(args.output, lambda file: file.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n"))
    save_figure(training_figure(rows), args.figures, "glow_training.png")
    for line in rows:
        weighted = line["test_bits_per_dim_weighted"]
        print(
            f"{line['model']:35} {line['test_bits_per_dim']:.4f} ± {line['test_bits_per_dim_se']:.4f}   "
            f"{line['draws'] or 1} draws {weighted or math.nan:.4f}   {line['training_seconds']:,.0f} s   {line['parameters']:,} parameters"
        )


if __name__ == "__main__":
    main()
