"""Which digit is it? p(digit | observed pixels) of the fills, against the labels of test images.

    python benchmarks/digit_calibration.py --data-dir DATA
    torchrun --nproc-per-node 2 benchmarks/digit_calibration.py --data-dir DATA

A method's fills vote: with S fills, of which n are a 4, it says p(4) = (n + 1/10) / (S
+ 1), as if one more fill were shared by all ten digits. So no digit is called
impossible. The methods are our samples, as many similar training images, and, as a
reference, a classifier's probabilities for the fill of the U-Net that was trained for
the task. A method is calibrated if, of all the times that it says 70 %, 70 % come true.

The fills are those of inpainting_table.py, from its folder where they are there; those
that are missing are made, 32 images at a time, so a run that was stopped goes on.

Writes   benchmarks/results/digit_calibration.json, figures/digit_calibration.png
Takes    five seconds for each image and mask on one core of an AMD EPYC without AVX-512, where the
         fill is not there yet
"""

import os
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

# the modules lie one folder up
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.about import provenance
from benchmarks.inpainting_table import fingerprint, load_chunks, make_chunks
from flowlib.cli import Parser, device, number, one_line_errors
from flowlib.distributed import processes
from flowlib.files import ROOT, save_figure, write_json
from flowlib.inpainting.masks import describe_mask

KINDS = ("square:18", "noise:0.9", "top")
METHODS = {
    "ours": "our samples",
    "neighbors": "similar images",
    "unet": "U-Net and classifier",
}
BINS, LEAST = 10, 8  # bins of p, and the digits in a bin that is drawn


def probabilities(votes: Tensor, classes: int = 10) -> Tensor:
    """p(class) by the fills' votes, (B, S) classes -> (B, classes)."""
    counts = nn.functional.one_hot(votes, classes).sum(1)
    return (counts + 1 / classes) / (votes.shape[1] + 1)


def log_losses(p: Tensor, label: Tensor) -> Tensor:
    """-log p(label) of each image in nats: (B, classes), (B,) -> (B,)."""
    return -p.gather(1, label[:, None]).squeeze(1).clamp(min=1e-12).log()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of (B,) and its standard error."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def score(p: Tensor, label: Tensor, other: Tensor) -> dict[str, float]:
    """The scores of p (B, classes) against labels (B,).

    Log-loss in nats, how much lower it is than that of `other` (B, classes) on the same
    images, both with standard errors; Brier score; accuracy.
    """
    right = nn.functional.one_hot(label, p.shape[1])
    losses = log_losses(p, label)
    loss, error = mean_and_error(losses)
    gain, gain_error = mean_and_error(log_losses(other, label) - losses)
    return {
        "log_loss": loss,
        "log_loss_error": error,
        "gain": gain,
        "gain_error": gain_error,
        "brier": (p - right).square().sum(1).mean().item(),
        "accuracy": (p.argmax(1) == label).double().mean().item(),
    }


def reliability(p: Tensor, label: Tensor) -> list[dict[str, float]]:
    """For each bin of p: how many digits were given it, their mean p, the share that was right.

    `error` is the standard error of that share.
    """
    right = nn.functional.one_hot(label, p.shape[1]).flatten().double()
    p = p.flatten().double()
    bins = (p * BINS).long().clamp(max=BINS - 1)
    rows = []
    for i in bins.unique().tolist():
        said, came = p[bins == i], right[bins == i]
        count, share = len(said), came.mean().item()
        row = {"count": count, "said": said.mean().item(), "right": share}
        rows.append(row | {"error": (share * (1 - share) / count) ** 0.5})
    return rows


def plot_reliability(rows: list[dict]) -> Figure:
    """How often it was right over how likely it was said to be, a panel a mask.

    Bins of fewer than LEAST digits are left out: their share means little.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for panel, kind in zip(panels, KINDS):
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
        for row in [row for row in rows if row["mask"] == kind]:
            points = [point for point in row["reliability"] if point["count"] >= LEAST]
            names = ("said", "right", "error")
            said, right, error = ([point[name] for point in points] for name in names)
            options = {"marker": "o", "markersize": 3, "linewidth": 1.2}
            label = f"{row['method']}: {row['log_loss']:.2f} nats"
            panel.errorbar(said, right, error, label=label, **options)
        panel.set(
            title=describe_mask(kind),
            xlabel="p that was said",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
        panel.legend(
            fontsize=9, title="log-loss", title_fontsize=9, frameon=False, **place
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share that was right (± standard error)")
    return figure


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, output = (
        parser.add_argument,
        ROOT / "benchmarks/results/digit_calibration.json",
    )
    add(
        "--data-dir",
        type=Path,
        default=ROOT / "data",
        help="where MNIST lies (default data/)",
    )
    add("--images", type=number(int, 1), default=500, help="test images (500)")
    add(
        "--figures",
        type=Path,
        metavar="FOLDER",
        default=ROOT / "figures",
        help="(figures/)",
    )
    add("--output", type=Path, metavar="FILE", default=output, help="the results file")
    add(
        "--device",
        type=device,
        default="auto",
        help="cpu, cuda, ...; auto: a GPU if any",
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    with processes(args.device) as group:
        make_chunks(group, args.data_dir, KINDS, args.images)
        if not group.first:
            return
    rows = []
    for kind in KINDS:
        parts = [chunk["digits"] for chunk in load_chunks(kind, args.images)]
        found = {
            name: torch.cat([part[name] for part in parts])[: args.images]
            for name in parts[0]
        }
        label = found.pop("label")
        said = {
            name: votes if votes.is_floating_point() else probabilities(votes)
            for name, votes in found.items()
        }
        for name, method in METHODS.items():
            p = said[name]
            row = {"mask": kind, "method": method, "images": len(label)}
            row |= score(p, label, said["neighbors"])
            print("   ".join(f"{key} {value}" for key, value in row.items()))
            rows.append(row | {"reliability": reliability(p, label)})
    command = [
        "python",
        "benchmarks/digit_calibration.py",
        "--images",
        str(args.images),
    ]
    about = provenance(command, torch.device("cpu"))
    about |= {"cores": os.cpu_count(), "weights": fingerprint()}
    about["flow_hardware"] = load_chunks(KINDS[0], 1)[0]["hardware"]
    write_json(args.output, {"about": about, "rows": rows})
    save_figure(plot_reliability(rows), args.figures, "digit_calibration.png")


if __name__ == "__main__":
    main()
