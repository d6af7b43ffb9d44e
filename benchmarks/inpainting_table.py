"""Zero-shot inpainting on MNIST: all methods under the same masks.

    python benchmarks/inpainting_table.py --data-dir DATA --images 200
    torchrun --nproc-per-node 2 benchmarks/inpainting_table.py --data-dir DATA

fills the first test images with every method. PSNR is over the missing pixels alone: it is that of
the mean over the images of the hole's mean squared error, grey values in [0, 1]. The intervals are
95 % of bootstraps over the images. No method was trained for the task but the U-Net, which shows
what training for it gains. Seconds are those of the processor, one thread.

Sixteen images at a time are filled and kept in benchmarks/runs/inpainting/: a run that was stopped
goes on, and one with more --images adds to what is there. Other weights begin anew; after a change
of a method delete that folder.

Writes   benchmarks/results/inpainting.json
Takes    some 10 seconds for each image and mask on one core of an AMD EPYC without AVX-512, the
         MAP estimate a quarter more, after half an hour for the fits
"""

import functools
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules lie one folder up
from benchmarks.about import provenance
from benchmarks.inpainting_methods import (
    FOLDER,
    MASKS,
    Methods,
    cut_holes,
    fitted_mixture,
    fitted_unet,
)
from flowlib.cli import Parser, number, one_line_errors
from flowlib.distributed import Processes, processes
from flowlib.files import ROOT, write_atomically, write_json
from flowlib.images.datasets import Images, load_images
from flowlib.images.glow import default_checkpoint, load_glow, precision_for
from flowlib.inpainting.fill import Problem
from flowlib.inpainting.initial_fills import similar_images
from flowlib.inpainting.scores import COVERAGES, crps, hole_mse, inside, psnr, ranks
from flowlib.rng import rng

CHUNK = 16  # images
FLAGS = ("images", "map-images")  # what decides the results


def energy_score(samples: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The score of samples as whole vectors: (B, S, ...), (B, ...) -> (B,); 0 is perfect.

    E‖X - truth‖ - E‖X - X'‖ / 2 over the missing pixels. Unlike `crps` it sees whether pixels fit
    together. Source: Gneiting and Raftery (2007), equation 22.
    """
    flat = torch.where(mask[:, None], samples - truth[:, None], 0).flatten(2)  # (B, S, D)
    return flat.norm(dim=2).mean(1) - torch.cdist(flat, flat).mean((1, 2)) / 2


def score(
    fill: Tensor, problem: Problem, labels: Tensor, methods: Methods, samples: Tensor | None
) -> dict[str, Tensor]:
    """Every score of each image, (B,) each. A fill without samples has those of a single one."""
    truth, mask = problem.truth.grey, problem.mask
    drawn = fill[:, None] if samples is None else samples
    pairs = [(a[0].numpy(), b[0].numpy()) for a, b in zip(fill, truth)]
    similar = [structural_similarity(a, b, data_range=1.0) for a, b in pairs]
    return {
        "mse": hole_mse(fill, truth, mask),
        "ssim": torch.tensor(similar),
        "correct": (methods.classifier.classify(fill * 255).argmax(1) == labels).float(),
        "ink": (fill * mask).flatten(1).sum(1),
        "true_ink": (truth * mask).flatten(1).sum(1),
        "crps": crps(drawn, truth, mask),
        "energy_score": energy_score(drawn, truth, mask),
    }


def coverage(rank: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The share of each image's missing pixels inside the central intervals, (B,) each."""
    missing = mask.flatten(1).sum(1)
    covered = {c: (inside(rank, c) & mask).flatten(1).sum(1) / missing for c in COVERAGES}
    return {f"coverage_{100 * c:.0f}": share for c, share in covered.items()}


def measure(kind: str, first: int, images: Images, methods: Methods, ascents: bool) -> dict:
    """One chunk of test images under one kind of mask: the scores of every method.

    With `ascents` the MAP estimate is among them. The result also says how the chains fared.
    """
    part = slice(first, first + CHUNK)
    levels, labels = images.test[part], images.test_labels[part]
    seeds = list(range(first, first + len(levels)))
    problem = cut_holes(kind, methods.inpainter, levels, seeds)
    mask, masked, truth = problem.mask, problem.masked, problem.truth
    fills, sampled = methods.sampled(problem)
    if ascents:
        fills = methods.ascents(problem) | fills
    rank = ranks(sampled["samples_v"], truth.v, rng(0, "ties", first))
    fills = methods.simple(masked / 255, mask, kind) | fills
    table = {}
    for name, (fill, seconds, *samples) in fills.items():
        if not fill.isfinite().all() or not torch.equal(fill[~mask], (masked / 255)[~mask]):
            raise AssertionError(f"{name} left NaN, or changed an observed pixel, under {kind}")
        table[name] = score(fill, problem, labels, methods, samples[0] if samples else None)
        if name == "posterior, sample":  # of the density of v, so before quantization
            table[name] |= coverage(rank, mask)
        elif samples:
            table[name] |= coverage(ranks(samples[0], truth.grey, rng(0, "ties", first)), mask)
        table[name]["seconds"] = torch.full((len(fill),), seconds / len(fill))
    chains = {name: sampled[name] for name in ("acceptance", "travelled")}
    classes = guess_digits(problem, fills, methods) | {"label": labels}
    return {"methods": table, "sampler": chains, "ranks": rank[mask], "digits": classes}


def guess_digits(problem: Problem, fills: dict, methods: Methods) -> dict[str, Tensor]:
    """What three methods say of the digits, for digit_calibration.py.

    Of our samples and of as many similar training images it is the class of each, (B, S); of the
    U-Net the classifier's probabilities for its fill, (B, 10).
    """
    classify, inpainter = methods.classifier.classify, methods.inpainter
    number = inpainter.settings.chains
    similar = similar_images(problem.masked, problem.mask, inpainter.references, number)
    found = {"ours": 255 * fills["posterior, sample"][2], "neighbors": similar}
    found = {
        name: classify(images.flatten(0, 1)).argmax(1).unflatten(0, (len(problem), -1))
        for name, images in found.items()
    }
    return found | {"unet": classify(255 * fills["U-Net, supervised"][0])}


def make_chunks(
    group: Processes, data_dir: Path, kinds: Sequence[str], count: int, map_images: int = 64
) -> None:
    """Measures the first `count` test images under these masks, where that has not been done yet.

    The first `map_images` of them get a MAP estimate too.
    """
    images = load_images("mnist", data_dir)
    glow = load_glow(default_checkpoint("mnist"))
    glow.set_precision(precision_for("auto", group.device))
    if group.first:
        fitted_mixture(images)
        fitted_unet(images)
    if group.count > 1:
        dist.barrier()
    methods = Methods(images, glow)
    # All masks of one chunk before the next: a run that is stopped early has the same images
    # under every mask.
    jobs = [(kind, first) for first in range(0, count, CHUNK) for kind in kinds]
    for kind, first in tqdm(jobs[group.rank :: group.count], disable=not group.first):
        file = path_of(kind, first)
        if not file.is_file():
            result = measure(kind, first, images, methods, first < map_images)
            write_atomically(file, lambda temporary, result=result: torch.save(result, temporary))
    if group.count > 1:
        dist.barrier()


@functools.cache
def fingerprint() -> str:
    """Which weights the Glow has; chunks of other weights are in another folder."""
    return hashlib.sha256(default_checkpoint("mnist").read_bytes()).hexdigest()[:8]


def path_of(kind: str, first: int) -> Path:
    """Where a chunk is."""
    return FOLDER / fingerprint() / f"{kind.replace(':', '')}_{first}.pt"


def load_chunks(kind: str, count: int) -> list[dict]:
    """What `measure` found for the first `count` test images."""
    return [torch.load(path_of(kind, i), weights_only=True) for i in range(0, count, CHUNK)]


# ---------------------------------------------------------------- the table


def rows_of(spec: str, chunks: list[dict]) -> list[dict]:
    """A row for each method."""
    rows = []
    for method in chunks[0]["methods"]:
        parts = [chunk["methods"][method] for chunk in chunks if method in chunk["methods"]]
        per_image = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        mse, n = per_image["mse"], len(per_image["mse"])
        again = mse[torch.randint(n, (2000, n), generator=torch.Generator().manual_seed(0))].mean(1)
        low, high = again.quantile(torch.tensor([0.025, 0.975])).tolist()
        row = {"method": method, "mask": spec, "n": n, "hole_psnr": psnr(mse.mean().item())}
        row |= {
            "hole_psnr_low": psnr(high),
            "hole_psnr_high": psnr(low),
            "hole_mse": mse.mean().item(),
            "hole_mse_low": low,
            "hole_mse_high": high,
        }
        row |= {
            "ssim": per_image["ssim"].mean().item(),
            "digit_accuracy": per_image["correct"].mean().item(),
        }
        row["ink_ratio"] = (per_image["ink"].sum() / per_image["true_ink"].sum()).item()
        for key in ("crps", "energy_score", *(f"coverage_{100 * c:.0f}" for c in COVERAGES)):
            row[key] = per_image[key].mean().item() if key in per_image else None
        rows.append(row | {"seconds_per_image": per_image["seconds"].mean().item()})
    return rows


def sampler_row(name: str, chunks: list[dict]) -> dict:
    """How the sampler fared, and how well its intervals cover."""
    rank = torch.cat([chunk["ranks"] for chunk in chunks])
    values = {
        key: torch.cat([chunk["sampler"][key] for chunk in chunks]).float()
        for key in chunks[0]["sampler"]
    }
    row = {"what": name, "n": len(values["travelled"])}
    row |= {f"coverage_{100 * c:.0f}": inside(rank, c).float().mean().item() for c in COVERAGES}
    row["acceptance"] = values["acceptance"].mean().item()
    return row | {"travelled": values["travelled"].median().item()}


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, output = parser.add_argument, ROOT / "benchmarks/results/inpainting.json"
    add("--data-dir", type=Path, default=ROOT / "data", help="where MNIST lies (default data/)")
    add("--images", type=number(int, 1), default=320, help="test images (default %(default)s)")
    add(
        "--map-images",
        type=number(int, 0),
        default=64,
        help="of them get MAP (default %(default)s)",
    )
    add(
        "--output", type=Path, metavar="FILE", default=output, help="default benchmarks/results/..."
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    with processes(torch.device("cpu")) as group:
        make_chunks(group, args.data_dir, MASKS, args.images, args.map_images)
        if group.first:
            write(args, group.count)


def write(args, count: int) -> None:
    """Puts the chunks together."""
    chunks = {kind: load_chunks(kind, args.images) for kind in MASKS}
    launcher = ["python"] if count == 1 else ["torchrun", "--nproc-per-node", str(count)]
    flags = {f"--{name}": getattr(args, name.replace("-", "_")) for name in FLAGS}
    words = [str(word) for flag in flags.items() for word in flag]
    about = provenance([*launcher, "benchmarks/inpainting_table.py", *words], torch.device("cpu"))
    about["hardware"] += f", {count} process{'' if count == 1 else 'es'}"
    about |= {"cores": os.cpu_count(), "weights": fingerprint()}
    rows = [row for kind, parts in chunks.items() for row in rows_of(kind, parts)]
    sampler = [sampler_row(f"test images, {kind}", parts) for kind, parts in chunks.items()]
    write_json(args.output, {"about": about, "rows": rows, "sampler": sampler})
    print(f"wrote {args.output}")
    for row in rows:
        quality = f"{row['hole_psnr']:6.2f} dB   accuracy {row['digit_accuracy']:.1%}"
        print(f"{row['mask']:11} {row['method']:30} {quality}   CRPS {row['crps']:.4f}")


if __name__ == "__main__":
    main()
