"""What does the noise at the end of a fill do, and would a sampler do it better?

    python -m benchmarks.last_stage --data-dir DATA

fills holes in held-out images, and ends the same refined fills in four ways: as they
are, at the tops of the density; with noise; with noise and two Langevin steps, which is
what inpaint.py does; and with noise and four moves of Hamiltonian Monte Carlo. All four
draw the same noise. The differences are paired, image by image. The endings were chosen
on these images, so none of them is a test image.

Writes   benchmarks/results/last_stage.json
Takes    a second for each image and mask on one core of an AMD EPYC with bfloat16
"""

import time

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.about import (
    add_data_flag,
    add_output_flag,
    command_of,
    print_rows,
    provenance,
)
from benchmarks.digit_calibration import mean_and_error
from benchmarks.inpainting_methods import cut_holes
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import SHIPPED, write_json
from flowlib.images.classifier import load_classifier
from flowlib.images.datasets import load_images
from flowlib.images.glow import PRECISIONS, load_glow, precision_for
from flowlib.inpainting.density import HoleDensity
from flowlib.inpainting.fill import Fill
from flowlib.inpainting.inpainter import Inpainter
from flowlib.inpainting.refine import add_noise
from flowlib.inpainting.scores import crps, hole_mse, inside, ranks
from flowlib.rng import Streams, rng
from flowlib.tables.hmc import sample_hmc

KINDS = ("square:14", "square:18", "noise:0.9", "top")
CHUNK = 16  # images
OURS = "noise, 2 Langevin steps (ours)"
GRADIENTS = {"none": 0, "noise": 0, OURS: 2, "noise, 4 HMC moves": 9}  # of a fill

# ---------------------------------------------------------------- measure


def end(
    name: str, density: HoleDensity, y: Tensor, width: Tensor, streams: Streams
) -> Tensor:
    """Refined fills y (B, C, D) after one of the four endings."""
    if name == "none":
        return y
    if name == OURS:
        return add_noise(density, y, width, streams)

    y = add_noise(density, y, width, streams, steps=0)
    if name == "noise":
        return y
    width = width * density.hole
    return sample_hmc(density, y, width, streams, moves=4, leapfrog=2)


def score(fill: Fill, digits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every score of the fills, which are of these `digits` (B, C): (B,) each."""
    truth = fill.problem.truth
    mask = fill.problem.mask
    scores = {
        "above_truth": fill.log_prob.mean(1) - truth.log_prob,
        "mean_mse": hole_mse(fill.mean(), truth.grey, mask),
        "crps": crps(fill.grey(fill.plausible), truth.grey, mask),
        "digit": (digits == labels[:, None]).float().mean(1),
    }
    rank = ranks(fill.plausible_v, truth.v, rng(0, "ties"))
    for share in (0.5, 0.9):
        covered = (inside(rank, share) & mask).flatten(1).sum(1)
        scores[f"coverage_{100 * share:.0f}"] = covered / mask.flatten(1).sum(1)
    return scores


def measure(inpainter: Inpainter, kind: str, images: Tensor, labels: Tensor) -> list:
    """A row for each ending under one kind of mask."""
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in GRADIENTS}
    seconds = dict.fromkeys(["refine", *GRADIENTS], 0.0)  # of one core
    for first in tqdm(range(0, len(images), CHUNK), desc=kind):
        part = slice(first, first + CHUNK)
        seeds = range(first, first + len(images[part]))
        problem = cut_holes(kind, inpainter, images[part], seeds)
        start = time.process_time()
        density, y, _ = inpainter.refine(problem)
        width = inpainter.widths(density, y)
        seconds["refine"] += time.process_time() - start

        for name, scores in found.items():
            streams = Streams(seeds, "last stage", y)
            start = time.process_time()
            v = density.decode(end(name, density, y, width, streams))
            seconds[name] += time.process_time() - start
            fill = inpainter.to_fill(problem, v)
            digits = inpainter.classifier.find_classes(fill.plausible)
            scores.append(score(fill, digits, labels[part]))

    per_image = {}
    for name, parts in found.items():
        per_image[name] = {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
    rows = []
    for name, scores in per_image.items():
        row = {"mask": kind, "ending": name, "images": len(images)}
        row["refine_seconds"] = seconds["refine"] / len(images)
        row["seconds"] = seconds[name] / len(images)
        for key, values in scores.items():
            more, error = mean_and_error(values - per_image[OURS][key])
            row[key] = values.mean().item()
            row[f"{key}_more"] = more
            row[f"{key}_more_se"] = error
        rows.append(row)
    return rows


# ---------------------------------------------------------------- table


def last_stage_table() -> str:
    """Log p, coverage and CRPS of each ending, with paired differences."""
    results = load("last_stage")
    rows = []
    for row in results["rows"]:
        ours = row["ending"] == OURS
        log_p = f"{row['above_truth_more']:+.1f} ± {row['above_truth_more_se']:.1f}"
        crps = f"{1e4 * row['crps_more']:+.1f} ± {1e4 * row['crps_more_se']:.1f}"
        cells = [
            row["mask"],
            row["ending"],
            f"{GRADIENTS[row['ending']]}",
            f"{row['seconds']:.2f}",
            f"{row['above_truth']:+.0f}",
            "" if ours else log_p,
            f"{row['coverage_50']:.1%}",
            f"{row['coverage_90']:.1%}",
            f"{row['crps']:.4f}",
            "" if ours else crps,
        ]
        rows.append(cells)

    header = ["mask", "after the refinement", "gradients", "seconds an image"]
    header += ["log p above the truth's", "more than ours", "50 % interval", "90 %"]
    header += ["CRPS", "more than ours, 1e-4"]
    count = f"the first {results['rows'][0]['images']} held-out images"
    return table(header, rows) + measured_on(results["about"], count)


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_data_flag(parser)
    add("--images", type=number(int, 2, 5000), default=64, help="held-out images")
    text = "precision of the networks; auto: bf16 where it is native"
    add("--precision", choices=PRECISIONS, default="auto", help=text)
    add_output_flag(parser, "last_stage")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    images = load_images("mnist", args.data_dir)
    glow = load_glow(SHIPPED / "glow_mnist.pt")
    glow.set_precision(precision_for(args.precision, device))
    classifier = load_classifier(SHIPPED / "classifier_mnist.pt")
    inpainter = Inpainter(glow, images.train, classifier)

    held_out = images.held_out[: args.images]
    labels = images.held_out_labels[: args.images]
    rows = [row for kind in KINDS for row in measure(inpainter, kind, held_out, labels)]
    flags = ("--images", args.images, "--precision", args.precision)
    about = provenance(command_of("last_stage", *flags), device)
    about["precision"] = str(glow.precision).removeprefix("torch.")
    write_json(args.output, {"about": about, "rows": rows})
    print_rows(rows)


if __name__ == "__main__":
    main()
