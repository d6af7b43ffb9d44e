"""Is the sampler calibrated where the model is right? Holes in samples of the flow itself.

    python benchmarks/inpainting_calibration.py

cuts holes into samples of the flow and fills them, with other samples as reference
images. The truth is then one more draw from the very density that the sampler targets.
So its rank among the fills is uniform if the sampler is right, pixel by pixel. Source:
Talts et al. (2018), arXiv:1804.06788 (simulation-based calibration).

Coverage alone is weak evidence: it says nothing about which fills are likelier than
others.

Writes   benchmarks/results/inpainting_calibration.json, figures/inpainting_calibration.png
Takes    five seconds for each square and eleven for 50 % noise, on one core of an AMD EPYC without
         AVX-512
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.stats import kstest
from torch import Tensor
from tqdm import tqdm

# the modules lie one folder up
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.about import provenance
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, SHIPPED, save_figure, write_json
from flowlib.images.classifier import load_classifier
from flowlib.images.glow import load_glow, precision_for
from flowlib.inpainting.fill import Problem
from flowlib.inpainting.inpainter import Inpainter
from flowlib.inpainting.masks import draw_masks
from flowlib.inpainting.scores import COVERAGES, inside, ranks
from flowlib.rng import rng

KINDS = ("square:14", "noise:0.5")
REFERENCES = 10_000  # samples of the flow
CHUNK = 16  # holes


def measure_ranks(
    inpainter: Inpainter, kind: str, count: int, seed: int
) -> dict[str, Tensor]:
    """The truth's ranks in (0, 1): of missing pixels (N,), of ink, log p and digit (count,) each.

    The ink is that of the hole, the digit, 0 ... 9, the classifier's. Also `acceptance`
    and `travelled` of the chains, (count,) each.
    """
    glow = inpainter.glow
    truth = glow.sample(count, rng(seed, "calibration truth"))
    masks = draw_masks(kind, count, glow.shape, seed)
    parts = []
    for first in tqdm(range(0, count, CHUNK), desc=kind):
        rows = range(first, min(first + CHUNK, count))
        v, mask = truth[rows.start : rows.stop], masks[rows.start : rows.stop]
        problem = Problem.cut(glow.quantize(v), mask, [seed + i for i in rows], v=v)
        found, ties = inpainter.sample(problem), rng(seed, "ties", first)
        ink = [
            (grey * mask.unsqueeze(1)).flatten(2).sum(2)
            for grey in (found.samples_v, v[:, None])
        ]
        log_p = inpainter.log_prob(v)
        # the truth first
        images = torch.cat([glow.quantize(v)[:, None], found.samples], 1)
        digit = inpainter.classifier.classify(images.flatten(0, 1)).argmax(1)
        digit = digit.unflatten(0, images.shape[:2])  # (B, 1 + S)
        part = {
            "pixel": ranks(found.samples_v, v, ties)[mask],
            "ink": ranks(ink[0], ink[1][:, 0], ties),
            "log_p": ranks(found.log_prob, log_p, ties),
            "digit": ranks(digit[:, 1:], digit[:, 0], ties),
            "acceptance": found.acceptance,
            "travelled": found.travelled,
        }
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def make_row(kind: str, found: dict[str, Tensor]) -> dict:
    """The results of one kind of hole."""
    row = {"mask": kind, "images": len(found["ink"])}
    covered = {c: inside(found["pixel"], c).float().mean().item() for c in COVERAGES}
    row |= {f"coverage_{100 * c:.0f}": share for c, share in covered.items()}
    # one rank an image: independent, so a test can be made
    for name in ("ink", "log_p", "digit"):
        test = kstest(found[name].numpy(), "uniform")
        row |= {
            f"{name}_rank_mean": found[name].mean().item(),
            f"{name}_rank_p": float(test.pvalue),
        }
    row |= {
        "acceptance": found["acceptance"].mean().item(),
        "travelled": found["travelled"].median().item(),
    }
    return row


def plot_calibration(ranks: dict[str, Tensor]) -> Figure:
    """Histograms of the truth's ranks in (0, 1) among the samples, and the intervals' coverage."""
    figure = Figure(figsize=(10, 3.0), layout="constrained")
    *panels, last = figure.subplots(1, len(ranks) + 1)
    promised = torch.linspace(0, 1, 101)
    last.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    for panel, (name, values) in zip(panels, ranks.items()):
        panel.hist(
            values.numpy(),
            bins=20,
            range=(0, 1),
            density=True,
            color="tab:blue",
            alpha=0.8,
        )
        panel.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        panel.set(xlabel="rank of the truth", yticks=[0, 1], xlim=(0, 1))
        panel.set_title(name, fontsize=9)
        covered = [inside(values, c).float().mean().item() for c in promised.tolist()]
        label = name.replace("\n", " ")
        (line,) = last.plot(promised.numpy(), covered, linewidth=1.3, label=label)
        marks = [inside(values, c).float().mean().item() for c in COVERAGES]
        last.plot(COVERAGES, marks, "o", markersize=3, color=line.get_color())
    panels[0].set_ylabel("density (dashed: calibrated)")
    highest = max(panel.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.set_ylim(0, highest)
    last.set(xlabel="promised", ylabel="covered", xlim=(0, 1), ylim=(0, 1))
    last.set_title("central intervals", fontsize=9)
    last.legend(fontsize=8)
    for panel in (*panels, last):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--images",
        type=number(int, 1),
        default=48,
        help="holes of each kind (default %(default)s)",
    )
    add("--seed", type=number(int, 0), default=0, help="default %(default)s")
    add(
        "--figures",
        type=Path,
        metavar="FOLDER",
        default=ROOT / "figures",
        help="default figures/",
    )
    output = ROOT / "benchmarks/results/inpainting_calibration.json"
    add(
        "--output",
        type=Path,
        metavar="FILE",
        default=output,
        help="default benchmarks/results/...",
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args, device = parse_args(argv), torch.device("cpu")
    glow = load_glow(SHIPPED / "glow_mnist.pt").set_precision(
        precision_for("auto", device)
    )
    references = glow.quantize(
        glow.sample(REFERENCES, rng(args.seed, "calibration references"))
    )
    inpainter = Inpainter(
        glow, references, load_classifier(SHIPPED / "classifier_mnist.pt")
    )
    found = {
        kind: measure_ranks(inpainter, kind, args.images, args.seed) for kind in KINDS
    }
    rows = [make_row(kind, values) for kind, values in found.items()]
    command = [
        "python",
        "benchmarks/inpainting_calibration.py",
        "--images",
        str(args.images),
    ]
    write_json(args.output, {"about": provenance(command, device), "rows": rows})
    pixels = {kind: values["pixel"] for kind, values in found.items()}
    save_figure(plot_calibration(pixels), args.figures, "inpainting_calibration.png")
    for row in rows:
        print(
            "   ".join(
                f"{key} {value:.3f}" for key, value in row.items() if key != "mask"
            )
        )


if __name__ == "__main__":
    main()
