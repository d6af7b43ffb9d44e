"""Does the share of a digit among the fills mean anything? Labels answer.

    python -m benchmarks.digit_calibration --data-dir DATA
    torchrun --nproc-per-node 2 -m benchmarks.digit_calibration --data-dir DATA

A method's fills vote: with S fills, of which n are a 4, it says p(4) = (n + 1/10) / (S
+ 1), as if one more fill were shared by all ten digits. So no digit is called
impossible. The methods are our fills, as many similar training images, and, as a
reference, a classifier's probabilities for the fill of the U-Net that was trained for
the task. A method is calibrated if, of all the times that it says 70 %, 70 % come true.

The fills are those of inpainting_table.py, from its folder where they are there; those
that are missing are made, 32 images at a time, so a run that was stopped goes on.

Writes   benchmarks/results/digit_calibration.json, figures/digit_calibration.png
Takes    a second for each image and mask on one core of an AMD EPYC with bfloat16,
         where the fill is not there yet
"""

import os

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.about import (
    add_data_flag,
    add_figures_flag,
    add_output_flag,
    command_of,
    provenance,
)
from benchmarks.inpainting_table import fingerprint, load_chunks, make_chunks
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, device, number, one_line_errors
from flowlib.distributed import processes
from flowlib.files import save_figure, write_json
from flowlib.inpainting.masks import describe_mask

KINDS = ("square:18", "noise:0.9", "top")
METHODS = {
    "ours": "our fills",
    "neighbors": "similar images",
    "unet": "U-Net and classifier",
}
BINS = 10  # of p
LEAST = 8  # digits in a bin that is drawn

# ---------------------------------------------------------------- scores


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
    """For each bin of p: its count of digits, their mean p, the share that was right.

    `error` is the standard error of that share.
    """
    came_true = nn.functional.one_hot(label, p.shape[1]).flatten().double()
    p = p.flatten().double()
    bins = (p * BINS).long().clamp(max=BINS - 1)

    rows = []
    for i in bins.unique().tolist():
        chosen = bins == i
        count = int(chosen.sum())
        share = came_true[chosen].mean().item()
        row = {
            "count": count,
            "said": p[chosen].mean().item(),
            "right": share,
            "error": (share * (1 - share) / count) ** 0.5,
        }
        rows.append(row)
    return rows


def measure(kind: str, count: int) -> list[dict]:
    """A row for each method, from the chunks of the first `count` test images."""
    parts = [chunk["digits"] for chunk in load_chunks(kind, count)]
    found = {}
    for name in parts[0]:
        found[name] = torch.cat([part[name] for part in parts])[:count]

    # The U-Net's are probabilities already, the others votes.
    label = found.pop("label")
    said = {}
    for name, votes in found.items():
        said[name] = votes if votes.is_floating_point() else probabilities(votes)

    rows = []
    for name, method in METHODS.items():
        row = {"mask": kind, "method": method, "images": len(label)}
        row |= score(said[name], label, said["neighbors"])
        rows.append(row | {"reliability": reliability(said[name], label)})
    return rows


# ---------------------------------------------------------------- table and figure


def digit_calibration_table() -> str:
    """p(digit | observed pixels) against the labels."""
    results = load("digit_calibration")
    rows = []
    for row in results["rows"]:
        gain = f"{row['gain']:.3f} ± {row['gain_error']:.3f}"
        cells = [
            row["mask"],
            row["method"],
            f"{row['log_loss']:.2f} ± {row['log_loss_error']:.2f}",
            gain if row["gain_error"] else "-",
            f"{row['brier']:.3f}",
            f"{row['accuracy']:.1%}",
        ]
        rows.append(cells)

    header = ["mask", "method", "log-loss, nats", "lower than similar images' by"]
    header += ["Brier score", "accuracy"]
    count = f"the first {results['rows'][0]['images']} test images"
    return table(header, rows) + measured_on(results["about"], count)


def plot_reliability(rows: list[dict]) -> Figure:
    """How often it was right over how likely it was said to be, a panel a mask.

    Bins of fewer than LEAST digits are left out: their share means little.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    line = {"marker": "o", "markersize": 3, "linewidth": 1.2}
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "frameon": False}

    for panel, kind in zip(panels, KINDS):
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
        for row in [row for row in rows if row["mask"] == kind]:
            points = [point for point in row["reliability"] if point["count"] >= LEAST]
            said = [point["said"] for point in points]
            right = [point["right"] for point in points]
            error = [point["error"] for point in points]
            label = f"{row['method']}: {row['log_loss']:.2f} nats"
            panel.errorbar(said, right, error, label=label, **line)

        panel.set(title=describe_mask(kind), xlabel="p that was said")
        panel.set(xlim=(0, 1), ylim=(0, 1))
        panel.legend(title="log-loss", fontsize=9, title_fontsize=9, **below)
        panel.spines[["top", "right"]].set_visible(False)

    panels[0].set_ylabel("share that was right (± standard error)")
    return figure


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_data_flag(parser)
    add("--images", type=number(int, 1), default=500, help="test images")
    add("--device", type=device, default="auto", help="device; auto: a GPU if any")
    add_figures_flag(parser)
    add_output_flag(parser, "digit_calibration")
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
        rows += measure(kind, args.images)
    for row in rows:
        shown = [f"{key} {row[key]}" for key in row if key != "reliability"]
        print("   ".join(shown))

    command = command_of("digit_calibration", "--images", args.images)
    about = provenance(command, torch.device("cpu"))
    about |= {"cores": os.cpu_count(), "weights": fingerprint()}
    about["flow_hardware"] = load_chunks(KINDS[0], 1)[0]["hardware"]
    write_json(args.output, {"about": about, "rows": rows})
    save_figure(plot_reliability(rows), args.figures, "digit_calibration.png")


if __name__ == "__main__":
    main()
