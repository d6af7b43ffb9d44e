"""Zero-shot inpainting on MNIST: all methods under the same masks.

    python benchmarks/inpainting_table.py --data-dir DATA --images 200
    torchrun --nproc-per-node 2 benchmarks/inpainting_table.py --data-dir DATA

fills the first test images with every method. PSNR is over the missing pixels alone: it
is that of the mean over the images of the hole's mean squared error, grey values in [0,
1]. The intervals are 95 % of bootstraps over the images. No method was trained for the
task but the U-Net, which shows what training for it gains.

32 images at a time are filled and kept in benchmarks/runs/inpainting/: a run that was
stopped goes on, and one with more --images adds to what is there. With other weights
the flow's fills begin anew; after a change of a method delete that folder. A machine
with a GPU can make the flow's fills, and another one the rest:

    python benchmarks/inpainting_table.py --data-dir DATA --flow-only

Writes   benchmarks/results/inpainting.json
Takes    five seconds for each image and mask on one core of an AMD EPYC without AVX-512, under
         noise:0.5 ten, the MAP estimates 1.5 more, after half an hour for the fits
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

# the modules lie one folder up
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.about import provenance
from benchmarks.inpainting_methods import (
    FOLDER,
    MASKS,
    Methods,
    cut_holes,
    fitted_mixture,
    fitted_unet,
)
from flowlib.cli import Parser, device, number, one_line_errors
from flowlib.distributed import Processes, processes
from flowlib.files import ROOT, SHIPPED, hardware, write_atomically, write_json
from flowlib.images.datasets import Images, load_images
from flowlib.images.glow import load_glow, precision_for
from flowlib.inpainting.fill import Problem
from flowlib.inpainting.initial_fills import similar_images
from flowlib.inpainting.scores import COVERAGES, crps, hole_mse, inside, psnr, ranks
from flowlib.rng import rng

CHUNK = 32  # images
MAP_IMAGES = 64  # of which MAP estimates are made, too
BOTH = ("methods", "digits")  # what every part of a chunk has


def energy_score(samples: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The score of samples as whole vectors: (B, S, ...), (B, ...) -> (B,); 0 is perfect.

    E‖X - truth‖ - E‖X - X'‖ / 2 over the missing pixels. Unlike `crps` it sees whether
    pixels fit together. Source: Gneiting and Raftery (2007), equation 22.
    """
    # (B, S, D)
    flat = torch.where(mask[:, None], samples - truth[:, None], 0).flatten(2)
    return flat.norm(dim=2).mean(1) - torch.cdist(flat, flat).mean((1, 2)) / 2


def score(
    fill: Tensor,
    problem: Problem,
    labels: Tensor,
    methods: Methods,
    samples: Tensor | None,
) -> dict[str, Tensor]:
    """Every score of each image, (B,) each. A fill without samples has those of a single one."""
    truth, mask = problem.truth.grey, problem.mask
    drawn = fill[:, None] if samples is None else samples
    pairs = [(a[0].numpy(), b[0].numpy()) for a, b in zip(fill, truth)]
    similar = [structural_similarity(a, b, data_range=1.0) for a, b in pairs]
    return {
        "mse": hole_mse(fill, truth, mask),
        "ssim": torch.tensor(similar),
        "correct": (
            methods.classifier.classify(fill * 255).argmax(1) == labels
        ).float(),
        "ink": (fill * mask).flatten(1).sum(1),
        "true_ink": (truth * mask).flatten(1).sum(1),
        "crps": crps(drawn, truth, mask),
        "energy_score": energy_score(drawn, truth, mask),
    }


def coverage(rank: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The share of each image's missing pixels inside the central intervals, (B,) each."""
    missing = mask.flatten(1).sum(1)
    covered = {
        c: (inside(rank, c) & mask).flatten(1).sum(1) / missing for c in COVERAGES
    }
    return {f"coverage_{100 * c:.0f}": share for c, share in covered.items()}


def measure_samples(kind: str, first: int, images: Images, methods: Methods) -> dict:
    """One chunk of test images under one kind of mask, filled by the flow.

    Returns every score of the samples and, of the first MAP_IMAGES, of the MAP
    estimates; how the chains fared; and which digits the samples are.
    """
    problem, labels = problem_of(kind, first, images, methods)
    fills, sampled = methods.sampled(problem)
    # name -> v
    ascents = methods.ascents(problem, sampled) if first < MAP_IMAGES else {}
    fills |= {
        name: (methods.inpainter.to_levels(v, problem) / 255,)
        for name, v in ascents.items()
    }
    rank = ranks(sampled.samples_v, problem.truth.v, rng(0, "ties", first))
    table = score_all(kind, fills, problem, labels, methods)
    # Of the density of v, so before quantization.
    table["posterior, sample"] |= coverage(rank, problem.mask)
    for name, v in ascents.items():
        table[name]["above_truth"] = (
            methods.inpainter.log_prob(v) - problem.truth.log_prob
        )
    chains = {name: getattr(sampled, name) for name in ("acceptance", "travelled")}
    digits = {
        "ours": vote(255 * fills["posterior, sample"][1], methods),
        "label": labels,
    }
    found = {
        "methods": table,
        "sampler": chains,
        "ranks": rank[problem.mask],
        "digits": digits,
    }
    return found | {"hardware": hardware(methods.inpainter.glow.device)}


def measure_others(kind: str, first: int, images: Images, methods: Methods) -> dict:
    """Likewise with the methods that need no flow."""
    problem, labels = problem_of(kind, first, images, methods)
    masked, mask, references = problem.masked, problem.mask, images.train
    fills = methods.simple(masked / 255, mask, kind)
    table = score_all(kind, fills, problem, labels, methods)
    drawn = fills["Gaussian mixture, sample"][1]
    rank = ranks(drawn, problem.truth.grey, rng(0, "ties", first))
    table["Gaussian mixture, sample"] |= coverage(rank, mask)
    similar = similar_images(
        masked, mask, references, methods.inpainter.settings.chains
    )
    unet = methods.classifier.classify(255 * fills["U-Net, supervised"][0])  # (B, 10)
    return {
        "methods": table,
        "digits": {"neighbors": vote(similar, methods), "unet": unet},
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
    table, masked = {}, problem.masked / 255
    for name, (fill, *samples) in fills.items():
        if not fill.isfinite().all() or not torch.equal(
            fill[~problem.mask], masked[~problem.mask]
        ):
            raise AssertionError(
                f"{name} left NaN, or changed an observed pixel, under {kind}"
            )
        table[name] = score(
            fill, problem, labels, methods, samples[0] if samples else None
        )
    return table


def vote(fills: Tensor, methods: Methods) -> Tensor:
    """Which digit each fill is: (B, S, 1, H, W) grey levels -> (B, S). For digit_calibration.py."""
    return (
        methods.classifier.classify(fills.flatten(0, 1))
        .argmax(1)
        .unflatten(0, fills.shape[:2])
    )


PARTS = {"others": measure_others, "samples": measure_samples}


def make_chunks(
    group: Processes,
    data_dir: Path,
    kinds: Sequence[str],
    count: int,
    parts: Sequence[str] = tuple(PARTS),
) -> None:
    """Measures the first `count` test images under these masks, where that has not been done yet.

    `parts` are among PARTS.
    """
    images = load_images("mnist", data_dir)
    glow = load_glow(SHIPPED / "glow_mnist.pt", group.device)
    glow.set_precision(precision_for("auto", group.device))
    if group.first and "others" in parts:
        fitted_mixture(images)
        fitted_unet(images)
    if group.count > 1:
        dist.barrier()
    methods = Methods(images, glow)
    # All masks of one chunk before the next: a run that is stopped early has the same
    # images under every mask. Part by part, so that each process gets as many of the
    # slow ones.
    starts = range(0, count, CHUNK)
    jobs = [(kind, first, part) for first in starts for part in parts for kind in kinds]
    # A process that is done takes over from the end of the others' shares, which may be
    # slower.
    mine = jobs[group.rank :: group.count]
    others = [job for job in reversed(jobs) if job not in mine]
    for kind, first, part in tqdm(mine + others, disable=not group.first):
        file = path_of(kind, first, part)
        if not file.is_file():
            result = PARTS[part](kind, first, images, methods)
            write_atomically(
                file, lambda temporary, result=result: torch.save(result, temporary)
            )
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
        parts = [
            torch.load(path_of(kind, first, part), weights_only=True) for part in PARTS
        ]
        joined = {
            name: {k: v for part in parts for k, v in part[name].items()}
            for name in BOTH
        }
        # the samples, the last part, hold more than the others
        chunks.append(parts[-1] | joined)
    return chunks


# ---------------------------------------------------------------- the table


def rows_of(spec: str, chunks: list[dict]) -> list[dict]:
    """A row for each method."""
    rows = []
    for method in chunks[0]["methods"]:
        parts = [
            chunk["methods"][method] for chunk in chunks if method in chunk["methods"]
        ]
        per_image = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        mse, n = per_image["mse"], len(per_image["mse"])
        again = mse[
            torch.randint(n, (2000, n), generator=torch.Generator().manual_seed(0))
        ].mean(1)
        low, high = again.quantile(torch.tensor([0.025, 0.975])).tolist()
        row = {
            "method": method,
            "mask": spec,
            "n": n,
            "hole_psnr": psnr(mse.mean().item()),
        }
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
        more = ("crps", "energy_score", "above_truth")
        for key in (*more, *(f"coverage_{100 * c:.0f}" for c in COVERAGES)):
            row[key] = per_image[key].mean().item() if key in per_image else None
        rows.append(row)
    return rows


def sampler_row(name: str, chunks: list[dict]) -> dict:
    """How the sampler fared, and how well its intervals cover."""
    rank = torch.cat([chunk["ranks"] for chunk in chunks])
    values = {
        key: torch.cat([chunk["sampler"][key] for chunk in chunks]).float()
        for key in chunks[0]["sampler"]
    }
    row = {"what": name, "n": len(values["travelled"])}
    row |= {
        f"coverage_{100 * c:.0f}": inside(rank, c).float().mean().item()
        for c in COVERAGES
    }
    row["acceptance"] = values["acceptance"].mean().item()
    return row | {"travelled": values["travelled"].median().item()}


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, output = parser.add_argument, ROOT / "benchmarks/results/inpainting.json"
    add(
        "--data-dir",
        type=Path,
        default=ROOT / "data",
        help="where MNIST lies (default data/)",
    )
    add(
        "--images",
        type=number(int, 1),
        default=320,
        help="test images (default %(default)s)",
    )
    add("--output", type=Path, metavar="FILE", default=output, help="the results file")
    add(
        "--device",
        type=device,
        default="auto",
        help="cpu, cuda, ...; auto: a GPU if any",
    )
    add(
        "--flow-only",
        action="store_true",
        help="only fill with the flow, and write no table",
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    parts = ["samples"] if args.flow_only else list(PARTS)
    with processes(args.device) as group:
        make_chunks(group, args.data_dir, MASKS, args.images, parts)
        if group.first and not args.flow_only:
            write(args, group.count)


def write(args, count: int) -> None:
    """Puts the chunks together."""
    chunks = {kind: load_chunks(kind, args.images) for kind in MASKS}
    launcher = (
        ["python"] if count == 1 else ["torchrun", "--nproc-per-node", str(count)]
    )
    command = [
        *launcher,
        "benchmarks/inpainting_table.py",
        "--images",
        str(args.images),
    ]
    about = provenance(command, torch.device("cpu"))
    about["hardware"] += f", {count} process{'' if count == 1 else 'es'}"
    about |= {"cores": os.cpu_count(), "weights": fingerprint()}
    about["flow_hardware"] = chunks[MASKS[0]][0]["hardware"]
    rows = [row for kind, parts in chunks.items() for row in rows_of(kind, parts)]
    sampler = [
        sampler_row(f"test images, {kind}", parts) for kind, parts in chunks.items()
    ]
    write_json(args.output, {"about": about, "rows": rows, "sampler": sampler})
    print(f"wrote {args.output}")
    for row in rows:
        quality = f"{row['hole_psnr']:6.2f} dB   accuracy {row['digit_accuracy']:.1%}"
        print(f"{row['mask']:11} {row['method']:30} {quality}   CRPS {row['crps']:.4f}")


if __name__ == "__main__":
    main()
