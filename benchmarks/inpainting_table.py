"""Which method fills holes best? Inpainting of MNIST, all under the same masks.

    python -m benchmarks.inpainting_table --data-dir DATA
    torchrun --nproc-per-node 2 -m benchmarks.inpainting_table --data-dir DATA

fills the first test images with every method. PSNR is over the missing pixels alone: it
is that of the mean over the images of the hole's mean squared error, grey values in [0,
1]. The intervals are 95 % of bootstraps over the images. No method was trained for the
task but the U-Net, which shows what training for it gains.

32 images at a time are filled and kept in benchmarks/runs/inpainting/: a run that was
stopped goes on, and one with more --images adds to what is there. With other weights
the flow's fills begin anew; after a change of a method delete that folder. A machine
with a GPU can make the flow's fills, and another one the rest:

    python -m benchmarks.inpainting_table --data-dir DATA --flow-only

Writes   benchmarks/results/inpainting.json
Takes    a second for each image and mask on one core of an AMD EPYC with bfloat16,
         under noise:0.5 two; the fits before that eight minutes
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from benchmarks.about import add_data_flag, add_output_flag, command_of, provenance
from benchmarks.inpainting_methods import (
    FOLDER,
    MASKS,
    Methods,
    cut_holes,
    fitted_mixture,
    fitted_unet,
)
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, device, number, one_line_errors
from flowlib.distributed import Processes, processes
from flowlib.files import SHIPPED, hardware, write_atomically, write_json
from flowlib.images.datasets import Images, load_images
from flowlib.images.glow import load_glow, precision_for
from flowlib.inpainting.fill import Problem
from flowlib.inpainting.refine import similar_images
from flowlib.inpainting.scores import COVERAGES, crps, hole_mse, inside, psnr, ranks
from flowlib.rng import rng

CHUNK = 32  # images
MAP_IMAGES = 64  # of which MAP estimates are made, too
BOTH = ("methods", "digits")  # what every part of a chunk has

# What the tables show; the results file has every method under every mask.
KINDS = ("square:8", "square:14", "noise:0.5", "noise:0.9")
TITLES = {
    "nearest neighbor": "most similar training image",
    "mean of 20 nearest": "mean of the 20 most similar",
    "biharmonic": "biharmonic",
    "Gaussian mixture, mean": "Gaussian mixture, mean",
    "Gaussian mixture, sample": "Gaussian mixture, one sample",
    "ours, mean": "ours, mean of 12 fills",
    "ours, medoid": "ours, medoid of 12 fills",
    "ours, one fill": "ours, one fill",
    "U-Net, supervised": "U-Net, trained for the task",
}
MAP_TITLES = {"MAP": "MAP", "MAP from fill": "the ascent from the likeliest fill"}

# ---------------------------------------------------------------- measure


def score(
    fill: Tensor,
    problem: Problem,
    labels: Tensor,
    methods: Methods,
    several: Tensor | None,
) -> dict[str, Tensor]:
    """Every score of each image, (B,) each; `several` fills, or only the one."""
    truth = problem.truth.grey
    mask = problem.mask
    drawn = fill[:, None] if several is None else several
    seen_as = methods.classifier.find_classes(fill * 255)
    return {
        "mse": hole_mse(fill, truth, mask),
        "correct": (seen_as == labels).float(),
        "ink": (fill * mask).flatten(1).sum(1),
        "true_ink": (truth * mask).flatten(1).sum(1),
        "crps": crps(drawn, truth, mask),
    }


def measure_ours(kind: str, first: int, images: Images, methods: Methods) -> dict:
    """One chunk of test images under one kind of mask, filled by the flow.

    Returns every score of the fills and, of the first MAP_IMAGES, of the MAP estimates;
    the truth's ranks; and which digits the fills are.
    """
    problem, labels = problem_of(kind, first, images, methods)
    inpainter = methods.inpainter
    fills, ours = methods.ours(problem)
    ascents = methods.ascents(problem, ours) if first < MAP_IMAGES else {}
    for name, v in ascents.items():
        fills[name] = (inpainter.to_levels(v, problem) / 255,)

    # Log-densities and ranks are those of v, so before quantization.
    scores = score_all(kind, fills, problem, labels, methods)
    for name, v in ascents.items():
        above = inpainter.log_prob(v) - problem.truth.log_prob
        scores[name]["above_truth"] = above
    rank = ranks(ours.plausible_v, problem.truth.v, rng(0, "ties", first))
    return {
        "methods": scores,
        "ranks": rank[problem.mask],
        "digits": {
            "ours": methods.classifier.find_classes(ours.plausible),
            "label": labels,
        },
        "hardware": hardware(inpainter.glow.device),
    }


def measure_others(kind: str, first: int, images: Images, methods: Methods) -> dict:
    """Likewise with the methods that need no flow."""
    problem, labels = problem_of(kind, first, images, methods)
    masked = problem.masked
    mask = problem.mask
    fills = methods.simple(masked / 255, mask, kind)
    count = methods.inpainter.settings.fills
    similar = similar_images(masked, mask, images.train, count)
    unet = methods.classifier.classify(255 * fills["U-Net, supervised"][0])  # (B, 10)
    return {
        "methods": score_all(kind, fills, problem, labels, methods),
        "digits": {"neighbors": methods.classifier.find_classes(similar), "unet": unet},
    }


def problem_of(
    kind: str, first: int, images: Images, methods: Methods
) -> tuple[Problem, Tensor]:
    """The chunk of test images that begins with `first`, with holes, and its labels."""
    part = slice(first, first + CHUNK)
    levels = images.test[part]
    seeds = range(first, first + len(levels))
    return cut_holes(kind, methods.inpainter, levels, seeds), images.test_labels[part]


def score_all(
    kind: str,
    fills: dict[str, tuple],
    problem: Problem,
    labels: Tensor,
    methods: Methods,
) -> dict[str, dict[str, Tensor]]:
    """Every score of every method's fills."""
    observed = ~problem.mask
    right = problem.masked[observed] / 255
    scores = {}
    for name, (fill, *several) in fills.items():
        if not fill.isfinite().all() or not torch.equal(fill[observed], right):
            fault = "left NaN, or changed an observed pixel"
            raise AssertionError(f"{name} {fault}, under {kind}")

        drawn = several[0] if several else None
        scores[name] = score(fill, problem, labels, methods, drawn)
    return scores


# ---------------------------------------------------------------- chunks of images

PARTS = {"others": measure_others, "ours": measure_ours}


def make_chunks(
    group: Processes,
    data_dir: Path,
    kinds: Sequence[str],
    count: int,
    parts: Sequence[str] = tuple(PARTS),
) -> None:
    """Measures the first `count` test images under these masks.

    What is there already stays. `parts` are among PARTS.
    """
    images = load_images("mnist", data_dir)
    glow = load_glow(SHIPPED / "glow_mnist.pt", group.device)
    glow.set_precision(precision_for("auto", group.device))

    # One process fits, the others then read what it has fitted.
    if group.first and "others" in parts:
        fitted_mixture(images)
        fitted_unet(images)
    wait_for_all(group)

    methods = Methods(images, glow)
    jobs = my_jobs(group, kinds, count, parts)
    for kind, first, part in tqdm(jobs, disable=not group.first):
        file = path_of(kind, first, part)
        if not file.is_file():
            found = PARTS[part](kind, first, images, methods)
            write_atomically(file, functools.partial(torch.save, found))
    wait_for_all(group)


def my_jobs(
    group: Processes, kinds: Sequence[str], count: int, parts: Sequence[str]
) -> list[tuple[str, int, str]]:
    """What this process measures, in its order: (kind, first image, part).

    All masks of one chunk come before the next, so a run that is stopped early has the
    same images under every mask. They come part by part, so each process gets as many
    of the slow ones.
    """
    starts = range(0, count, CHUNK)
    jobs = [(kind, first, part) for first in starts for part in parts for kind in kinds]
    mine = jobs[group.rank :: group.count]

    # Whoever is done takes over from the end of the others' shares.
    return mine + [job for job in reversed(jobs) if job not in mine]


def wait_for_all(group: Processes) -> None:
    """Returns when every process is here."""
    if group.count > 1:
        dist.barrier()


@functools.cache
def fingerprint() -> str:
    """Which weights the Glow has; chunks of other weights are in another folder."""
    return hashlib.sha256((SHIPPED / "glow_mnist.pt").read_bytes()).hexdigest()[:8]


def path_of(kind: str, first: int, part: str) -> Path:
    """Where a chunk is."""
    folder = part if part == "others" else f"{fingerprint()}/{part}"
    return FOLDER / folder / f"{kind.replace(':', '')}_{first}.pt"


def load_chunks(kind: str, count: int) -> list[dict]:
    """What all parts found for the first `count` test images."""
    chunks = []
    for first in range(0, count, CHUNK):
        files = [path_of(kind, first, part) for part in PARTS]
        parts = [torch.load(file, weights_only=True) for file in files]
        joined = {}
        for name in BOTH:
            joined[name] = {key: v for part in parts for key, v in part[name].items()}

        # Ours, the last part, holds more than the others.
        chunks.append(parts[-1] | joined)
    return chunks


# ---------------------------------------------------------------- rows


def rows_of(kind: str, chunks: list[dict]) -> list[dict]:
    """A row for each method."""
    rows = []
    for method in chunks[0]["methods"]:
        parts = [chunk["methods"].get(method) for chunk in chunks]
        parts = [part for part in parts if part is not None]
        per_image = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        rows.append({"method": method, "mask": kind, **make_row(per_image)})
    return rows


def make_row(per_image: dict[str, Tensor]) -> dict:
    """A method's numbers under one kind of mask, from its scores of each image."""
    mse = per_image["mse"]
    low, high = bootstrap_interval(mse)
    above = per_image.get("above_truth")
    ink = per_image["ink"].sum() / per_image["true_ink"].sum()

    return {
        "n": len(mse),
        "hole_psnr": psnr(mse.mean().item()),
        "hole_psnr_low": psnr(high),
        "hole_psnr_high": psnr(low),
        "hole_mse": mse.mean().item(),
        "digit_accuracy": per_image["correct"].mean().item(),
        "ink_ratio": ink.item(),
        "crps": per_image["crps"].mean().item(),
        "above_truth": None if above is None else above.mean().item(),
    }


def bootstrap_interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of (N,), from 2,000 bootstraps."""
    n = len(values)
    generator = torch.Generator().manual_seed(0)
    means = values[torch.randint(n, (2000, n), generator=generator)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def intervals_row(kind: str, chunks: list[dict]) -> dict:
    """How many of the missing pixels lie inside the intervals of the fills."""
    rank = torch.cat([chunk["ranks"] for chunk in chunks])
    row = {"what": f"test images, {kind}"}
    for c in COVERAGES:
        row[f"coverage_{100 * c:.0f}"] = inside(rank, c).float().mean().item()
    return row


# ---------------------------------------------------------------- tables


def by_kind(titles: dict[str, str], cell: Callable[[dict], str]) -> str:
    """A row a method, a column a kind of mask."""
    found = {(row["method"], row["mask"]): row for row in load("inpainting")["rows"]}
    rows = []
    for method, title in titles.items():
        cells = [found.get((method, kind)) for kind in KINDS]
        rows.append([title, *(cell(row) if row else "-" for row in cells)])
    return table(["method", *KINDS], rows)


def images_of(method: str) -> str:
    """On how many test images a method was measured."""
    rows = load("inpainting")["rows"]
    (count,) = {row["n"] for row in rows if row["method"] == method}
    return f"the first {count} test images"


def below(*more: str) -> str:
    """The line below a table of all methods."""
    return measured_on(load("inpainting")["about"], *more)


def inpainting_table() -> str:
    """Hole PSNR of eight methods under four masks."""
    rows = load("inpainting")["rows"]
    error = median(row["hole_psnr_high"] - row["hole_psnr_low"] for row in rows) / 2
    width = f"95 % bootstrap intervals typically ± {error:.1f} dB"
    what = f"hole PSNR in dB, {images_of('ours, mean')}"
    return by_kind(TITLES, lambda row: f"{row['hole_psnr']:.1f}") + below(what, width)


def inpainting_map_table() -> str:
    """PSNR and log p of the MAP estimate and of where the likeliest sample leads."""

    def cell(row: dict) -> str:
        return f"{row['hole_psnr']:.1f}, {row['above_truth']:+.0f}"

    return by_kind(MAP_TITLES, cell) + below(images_of("MAP"))


def inpainting_accuracy_table() -> str:
    """How many filled images are still the digit that they were, for the classifier."""
    text = by_kind(TITLES, lambda row: f"{row['digit_accuracy']:.0%}")
    return text + below(images_of("ours, mean"))


def inpainting_crps_table() -> str:
    """The score of the methods as distributions."""
    text = by_kind(TITLES, lambda row: f"{row['crps']:.4f}")
    return text + below(images_of("ours, mean"))


def inpainting_intervals_table() -> str:
    """What the fills are worth as a distribution on test images: coverage, ink."""
    results = load("inpainting")
    ink = {}
    for row in results["rows"]:
        if row["method"] == "ours, one fill":
            ink[row["mask"]] = row["ink_ratio"]

    rows = []
    for row in results["intervals"]:
        kind = row["what"].removeprefix("test images, ")
        covered = [f"{row[f'coverage_{c}']:.1%}" for c in (50, 80, 90, 95)]
        rows.append([kind, *covered, f"{ink[kind]:.2f}"])
    header = ["mask", "50 % interval", "80 %", "90 %", "95 %", "ink"]
    return table(header, rows) + below(images_of("ours, one fill"))


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_data_flag(parser)
    add("--images", type=number(int, 1), default=320, help="test images")
    add("--device", type=device, default="auto", help="device; auto: a GPU if any")
    only = "only fill with the flow, and write no table"
    add("--flow-only", action="store_true", help=only)
    add_output_flag(parser, "inpainting")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    parts = ["ours"] if args.flow_only else list(PARTS)
    with processes(args.device) as group:
        make_chunks(group, args.data_dir, MASKS, args.images, parts)
        if group.first and not args.flow_only:
            write_results(args.output, args.images, group.count)


def write_results(path: Path, images: int, count: int) -> None:
    """Puts together the chunks of so many images, measured by `count` processes."""
    chunks = {kind: load_chunks(kind, images) for kind in MASKS}
    command = command_of("inpainting_table", "--images", images)
    if count > 1:
        command[:1] = ["torchrun", "--nproc-per-node", str(count)]
    about = provenance(command, torch.device("cpu"))
    about["hardware"] += f", {count} process{'' if count == 1 else 'es'}"
    about["cores"] = os.cpu_count()
    about["weights"] = fingerprint()
    about["flow_hardware"] = chunks[MASKS[0]][0]["hardware"]

    rows = [row for kind, parts in chunks.items() for row in rows_of(kind, parts)]
    intervals = [intervals_row(kind, parts) for kind, parts in chunks.items()]
    write_json(path, {"about": about, "rows": rows, "intervals": intervals})
    print(f"wrote {path}")
    for row in rows:
        quality = f"{row['hole_psnr']:6.2f} dB   accuracy {row['digit_accuracy']:.1%}"
        print(f"{row['mask']:11} {row['method']:30} {quality}   CRPS {row['crps']:.4f}")


if __name__ == "__main__":
    main()
