"""Are the fills calibrated where the model is right? Holes in the flow's own samples.

    python -m benchmarks.inpainting_calibration

cuts holes into samples of the flow and fills them, with other samples as reference
images. The truth is then a draw from the very density that judges the fills. So its
rank among the fills is uniform if they are such draws too, pixel by pixel. Source:
Talts et al. (2018), arXiv:1804.06788 (simulation-based calibration).

Coverage alone is weak evidence: it says nothing about which fills are likelier than
others.

Writes   benchmarks/results/inpainting_calibration.json,
         figures/inpainting_calibration.png
Takes    two and a half minutes on one core of an AMD EPYC with bfloat16
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks.about import add_figures_flag, add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import SHIPPED, save_figure, write_json
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
    """The truth's ranks in (0, 1) among the fills of `count` holes.

    Of missing pixels, (N,); of ink in the hole, log p and digit, 0 ... 9 for the
    classifier, (count,) each.
    """
    glow = inpainter.glow
    truth = glow.sample(count, rng(seed, "calibration truth"))
    masks = draw_masks(kind, count, glow.shape, seed)
    parts = []
    for first in tqdm(range(0, count, CHUNK), desc=kind):
        rows = slice(first, min(first + CHUNK, count))
        seeds = [seed + i for i in range(rows.start, rows.stop)]
        ties = rng(seed, "ties", first)
        parts.append(ranks_of(inpainter, truth[rows], masks[rows], seeds, ties))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def ranks_of(
    inpainter: Inpainter,
    v: Tensor,
    mask: Tensor,
    seeds: list[int],
    ties: torch.Generator,
) -> dict[str, Tensor]:
    """What `measure_ranks` returns, of some samples v (B, 1, H, W) of the flow."""
    glow = inpainter.glow
    problem = Problem.cut(glow.quantize(v), mask, seeds, v=v)
    found = inpainter.find_fills(problem)
    fills = found.plausible_v  # (B, C, 1, H, W)

    def ink(images: Tensor) -> Tensor:
        return (images * mask.unsqueeze(1)).flatten(2).sum(2)

    # The digits of the truth, then of the fills.
    images = torch.cat([glow.quantize(v)[:, None], found.plausible], 1)
    digit = inpainter.classifier.find_classes(images)  # (B, 1 + C)

    log_p = inpainter.log_prob(v)
    return {
        "pixel": ranks(fills, v, ties)[mask],
        "ink": ranks(ink(fills), ink(v[:, None])[:, 0], ties),
        "log_p": ranks(found.log_prob, log_p, ties),
        "digit": ranks(digit[:, 1:], digit[:, 0], ties),
    }


def make_row(kind: str, found: dict[str, Tensor]) -> dict:
    """The results of one kind of hole."""
    from scipy.stats import kstest

    row = {"mask": kind, "images": len(found["ink"])}
    for c in COVERAGES:
        covered = inside(found["pixel"], c).float().mean().item()
        row[f"coverage_{100 * c:.0f}"] = covered

    # One rank an image: they are independent, so they can be tested.
    for name in ("ink", "log_p", "digit"):
        row[f"{name}_rank_mean"] = found[name].mean().item()
        row[f"{name}_rank_p"] = float(kstest(found[name].numpy(), "uniform").pvalue)
    return row


# ---------------------------------------------------------------- table and figure


def inpainting_calibration_table() -> str:
    """Coverage and ranks in samples of the flow itself."""
    results = load("inpainting_calibration")
    rows = []
    for row in results["rows"]:
        covered = [f"{row[f'coverage_{c}']:.1%}" for c in (50, 80, 90, 95)]
        cells = [row["mask"], *covered]
        for name in ("ink", "log_p", "digit"):
            p = row[f"{name}_rank_p"]
            cells.append(f"{row[f'{name}_rank_mean']:.2f} ({p:.2g})")
        rows.append(cells)

    header = ["mask", "50 % interval", "80 %", "90 %", "95 %"]
    header += ["mean rank of the ink (p)", "of log p (p)", "of the digit (p)"]
    (count,) = {row["images"] for row in results["rows"]}
    what = f"{count} samples of the flow a mask"
    return table(header, rows) + measured_on(results["about"], what)


def plot_calibration(ranks_of_kind: dict[str, Tensor]) -> Figure:
    """Histograms of the truth's ranks among the fills; the intervals' coverage."""
    figure = Figure(figsize=(10, 3.0), layout="constrained")
    *panels, last = figure.subplots(1, len(ranks_of_kind) + 1)
    promised = torch.linspace(0, 1, 101).tolist()
    last.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    bars = dict(bins=20, range=(0, 1), density=True, color="tab:blue", alpha=0.8)

    for panel, (name, values) in zip(panels, ranks_of_kind.items()):
        panel.hist(values.numpy(), **bars)
        panel.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        panel.set(xlabel="rank of the truth", yticks=[0, 1], xlim=(0, 1))
        panel.set_title(name, fontsize=9)

        covered = [inside(values, c).float().mean().item() for c in promised]
        (line,) = last.plot(promised, covered, linewidth=1.3, label=name)
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


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--images", type=number(int, 1), default=48, help="holes of each kind")
    add("--seed", type=number(int, 0), default=0, help="seed of all random numbers")
    add_figures_flag(parser)
    add_output_flag(parser, "inpainting_calibration")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    device = torch.device("cpu")
    glow = load_glow(SHIPPED / "glow_mnist.pt")
    glow.set_precision(precision_for("auto", device))
    v = glow.sample(REFERENCES, rng(args.seed, "calibration references"))
    classifier = load_classifier(SHIPPED / "classifier_mnist.pt")
    inpainter = Inpainter(glow, glow.quantize(v), classifier)

    found = {}
    for kind in KINDS:
        found[kind] = measure_ranks(inpainter, kind, args.images, args.seed)
    rows = [make_row(kind, values) for kind, values in found.items()]

    command = command_of("inpainting_calibration", "--images", args.images)
    write_json(args.output, {"about": provenance(command, device), "rows": rows})
    pixels = {kind: values["pixel"] for kind, values in found.items()}
    save_figure(plot_calibration(pixels), args.figures, "inpainting_calibration.png")
    for row in rows:
        cells = [f"{key} {row[key]:.3f}" for key in row if key != "mask"]
        print(f"{row['mask']}:", "   ".join(cells))


if __name__ == "__main__":
    main()
