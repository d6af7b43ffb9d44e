"""Zero-shot inpainting on MNIST, all methods under the same masks; and whether the posterior is calibrated.

    python benchmarks/inpainting_table.py --data-dir DATA --images 200
    torchrun --nproc-per-node 2 benchmarks/inpainting_table.py --data-dir DATA

fills the first test images with every method. PSNR is over the missing pixels alone, 10 log10(1 / mean over the images of the hole's mean
squared error), grey levels in [0, 1]; the intervals are 95 % of bootstraps over the images. No method was trained for the task but the
U-Net, which stands there to show what training for it gains. The calibration takes the flow's own samples for the truth, and others of
them in the place of training images: there the model is right, only the sampler can be wrong. Seconds are those of the processor, one
thread, so that two processes do not count each other's.

Sixteen images at a time are filled and kept in benchmarks/runs/inpainting/: a run that was stopped goes on, and one with more --images
adds to what is there. Delete that folder after a change of the model or of a method.

Writes   benchmarks/results/inpainting.json, figures/inpainting_calibration.png
Takes    on 2 CPU cores some 21 seconds an image over all eleven masks, MAP as long again, after 15 minutes for the fits and the calibration
"""

import json
import os
import sys
import time
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from scipy.stats import kstest
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script's own folder is on the path, the modules lie one above
import cv2

from benchmarks.baselines import Mixture, UNet, biharmonic, nearest_mean, opencv, train_unet
from flowlib.cli import Parser, number, one_line_errors
from flowlib.distributed import processes
from flowlib.files import ROOT, provenance, save_figure, write_atomically
from flowlib.images.classifier import default_classifier, load_classifier
from flowlib.images.datasets import Images, load_images
from flowlib.images.glow import default_checkpoint, load_glow, precision_for, quantise
from flowlib.inpainting.inpainter import POSTERIOR, STARTS, dequantised, flow_bank, flow_truth, map_fill, posterior_fill
from flowlib.inpainting.scores import CONVERGED, COVERAGES, crps, energy_score, hole_mse, inside, psnr, ranks
from flowlib.plots.inpainting import calibration_figure
from inpaint import masks_for

FOLDER = ROOT / "benchmarks/runs/inpainting"
MASKS = [
    *(f"square:{side}" for side in (8, 10, 14, 18)),
    *(f"noise:{share}" for share in (0.5, 0.75, 0.9)),
    "top",
    "bottom",
    "left",
    "right",
]
CALIBRATION = ["square:14", "noise:0.5"]  # in the flow's own samples
CHUNK = 16  # images
SLOW = {"biharmonic": ("noise:0.9",)}  # its linear system takes minutes there

# ---------------------------------------------------------------- methods


class Methods:
    """All of them, fitted on the training images."""

    def __init__(self, images: Images, glow, map_steps: int):
        self.glow, self.bank, self.map_steps = glow, images.train, map_steps
        self.grey = images.train.float() / 255
        self.pixel_mean = self.grey.mean(0)
        self.mixture, self.unet = fitted(images)
        self.judge = load_classifier(default_classifier(images.name))

    @cached_property
    def flow_bank(self) -> Tensor:
        """The flow's own samples, for holes in others of them."""
        return flow_bank(self.glow, 10_000, 0)

    def simple(self, masked: Tensor, mask: Tensor, spec: str) -> dict[str, tuple]:
        """Name -> (fill, seconds) or (fill, seconds, samples); those that need no flow."""
        calls = {
            "zero": lambda: masked,
            "pixel mean": lambda: self.pixel_mean,
            "nearest neighbour": lambda: nearest_mean(masked, mask, self.grey, 1),
            "mean of 20 nearest": lambda: nearest_mean(masked, mask, self.grey, 20),
            "biharmonic": lambda: biharmonic(masked, mask),
            "Telea": lambda: opencv(masked, mask, cv2.INPAINT_TELEA),
            "Navier-Stokes": lambda: opencv(masked, mask, cv2.INPAINT_NS),
            "U-Net, supervised": lambda: self.unet.fill(masked, mask),
        }
        found = {
            name: timed(lambda call=call: torch.where(mask, call(), masked))
            for name, call in calls.items()
            if spec not in SLOW.get(name, ())
        }
        (mean, samples), seconds = timed(lambda: self.mixture.fill(masked, mask, 32, torch.Generator().manual_seed(0)))
        return found | {"Gaussian mixture, mean": (mean, seconds), "Gaussian mixture, sample": (samples[0], seconds, samples)}

    def ascents(self, masked: Tensor, mask: Tensor, seeds: list[int]) -> dict[str, tuple]:
        """Likewise for MAP, and for where each start led."""
        found, seconds = timed(lambda: map_fill(self.glow, self.bank, masked, mask, seeds, steps=self.map_steps))
        fills = {f"MAP from {name}": (found["map_each"][:, i] / 255, seconds / len(STARTS)) for i, name in enumerate(STARTS)}
        return {"MAP": (found["map"] / 255, seconds), **fills}

    def posterior(self, masked: Tensor, mask: Tensor, seeds: list[int]) -> tuple[dict[str, tuple], dict[str, Tensor]]:
        """Likewise for the posterior; and what `posterior_fill` returns."""
        posterior, seconds = timed(lambda: posterior_fill(self.glow, self.bank, masked, mask, seeds))
        samples = posterior["samples"].transpose(0, 1) / 255
        return {
            "posterior, mean": (torch.where(mask, samples.mean(0), masked / 255), seconds),  # a mean of equal numbers is rounded
            "posterior, median": (samples.quantile(0.5, dim=0), seconds),
            "posterior, sample": (samples[0], seconds, samples),
        }, posterior


def timed(call) -> tuple:
    """What a call returns, and the seconds of the processor that it took."""
    start = time.process_time()
    with torch.no_grad():
        result = call()
    return result, time.process_time() - start


def fitted(images: Images) -> tuple[Mixture, UNet]:
    """The methods that are fitted to training images, from the folder of runs if they were fitted before."""
    file = FOLDER / "mixture.pt"
    if not file.is_file():
        fresh = Mixture.fit(images.train[:20_000].float() / 255)
        write_atomically(file, lambda temporary: torch.save(vars(fresh), temporary))
    mixture, unet = Mixture(**torch.load(file, weights_only=True)), UNet().eval()
    file = FOLDER / "unet.pt"
    if not file.is_file():
        weights = train_unet(images.train.float() / 255, MASKS).state_dict()
        write_atomically(file, lambda temporary: torch.save(weights, temporary))
    unet.load_state_dict(torch.load(file, weights_only=True))
    return mixture, unet


# ---------------------------------------------------------------- measure


def scores(
    fill: Tensor, truth: Tensor, mask: Tensor, labels: Tensor, judge, samples: Tensor | None, rank: Tensor | None
) -> dict[str, Tensor]:
    """Every figure of each image, (B,) each; a fill without samples has the scores of a single one, and covers nothing."""
    drawn = fill[None] if samples is None else samples
    shown = [(a[0].numpy(), b[0].numpy()) for a, b in zip(fill, truth)]
    if rank is None and samples is not None:
        rank = ranks(samples, truth, torch.Generator().manual_seed(0))
    covered = {
        f"coverage_{100 * c:.0f}": (inside(rank, c) & mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
        for c in (COVERAGES if rank is not None else ())
    }
    return {
        "mse": hole_mse(fill, truth, mask),
        "ssim": torch.tensor([structural_similarity(a, b, data_range=1.0) for a, b in shown]),
        "correct": (judge.classify(fill * 255).argmax(1) == labels).float(),
        "ink": (fill * mask).flatten(1).sum(1),
        "true_ink": (truth * mask).flatten(1).sum(1),
        "crps": crps(drawn, truth, mask),
        "energy_score": energy_score(drawn, truth, mask),
        **covered,
    }


def measure(spec: str, first: int, images: Images, methods: Methods, ascents: bool) -> dict:
    """One chunk of test images under one kind of mask: the scores of every method (of MAP with `ascents`), and how the sampler fared."""
    part = slice(first, first + CHUNK)
    levels, labels = images.test[part], images.test_labels[part]
    seeds = list(range(first, first + len(levels)))
    mask = torch.cat([masks_for(spec, 1, images.shape, seed) for seed in seeds])
    truth, masked_levels = levels.float() / 255, torch.where(mask, 0, levels)
    masked = masked_levels.float() / 255
    fills, posterior = methods.posterior(masked_levels, mask, seeds)
    if ascents:
        fills = methods.ascents(masked_levels, mask, seeds) | fills
    rank = ranks(posterior["v"].transpose(0, 1), dequantised(methods.glow, levels, seeds), torch.Generator().manual_seed(0))
    table = {}
    for name, (fill, seconds, *samples) in (methods.simple(masked, mask, spec) | fills).items():
        if not fill.isfinite().all() or not torch.equal(fill[~mask], masked[~mask]):
            raise AssertionError(f"{name} left a value that is not finite, or changed a known pixel, under {spec}")
        of_flow = rank if name == "posterior, sample" else None
        table[name] = scores(fill, truth, mask, labels, methods.judge, samples[0] if samples else None, of_flow)
        table[name]["seconds"] = torch.full((len(fill),), seconds / len(fill))
    return {"methods": table, "sampler": diagnostics(posterior), "ranks": rank[mask]}


def diagnostics(posterior: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: posterior[name] for name in ("acceptance", "ess", "r_hat", "temperatures")}


def calibrate(spec: str, first: int, images: Images, methods: Methods) -> dict:
    """One chunk of the flow's own samples: ranks of the truth, of each missing pixel and of the hole's ink."""
    glow, seeds = methods.glow, list(range(first, first + CHUNK))
    truth = flow_truth(glow, CHUNK, first)
    mask = torch.cat([masks_for(spec, 1, images.shape, 10_000 + seed) for seed in seeds])
    masked = torch.where(mask, 0, quantise(truth, glow.levels))
    posterior = posterior_fill(glow, methods.flow_bank, masked, mask, seeds, known=torch.where(mask, 0.5, truth))
    v = posterior["v"].transpose(0, 1)
    generator = torch.Generator().manual_seed(first)
    ink = ranks((v * mask).flatten(2).sum(2), (truth * mask).flatten(1).sum(1), generator)
    return {"ranks": ranks(v, truth, generator)[mask], "ink_rank": ink, "sampler": diagnostics(posterior)}


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
        row |= {"ssim": per_image["ssim"].mean().item(), "digit_accuracy": per_image["correct"].mean().item()}
        row["ink_ratio"] = (per_image["ink"].sum() / per_image["true_ink"].sum()).item()
        for key in ("crps", "energy_score", *(f"coverage_{100 * c:.0f}" for c in COVERAGES)):
            row[key] = per_image[key].mean().item() if key in per_image else None
        rows.append(row | {"seconds_per_image": per_image["seconds"].mean().item()})
    return rows


def sampler_row(name: str, chunks: list[dict]) -> dict:
    """How the sampler fared, and how well its intervals cover."""
    rank = torch.cat([chunk["ranks"] for chunk in chunks])
    values = {key: torch.cat([chunk["sampler"][key] for chunk in chunks]).float() for key in chunks[0]["sampler"]}
    row = {"what": name, "n": len(values["r_hat"])}
    row |= {f"coverage_{100 * c:.0f}": inside(rank, c).float().mean().item() for c in COVERAGES}
    row |= {"acceptance": values["acceptance"].mean().item(), "ess": values["ess"].mean().item()}
    row |= {"temperatures": values["temperatures"].mean().item(), "r_hat_median": values["r_hat"].median().item()}
    row["converged"] = (values["r_hat"] < CONVERGED).float().mean().item()
    if "ink_rank" in chunks[0]:
        row["ink_rank_p"] = float(kstest(torch.cat([chunk["ink_rank"] for chunk in chunks]).numpy(), "uniform").pvalue)
    return row


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where MNIST lies (default data/)")
    parser.add_argument("--images", type=number(int, 1), default=1000, help="test images, in sixteens (default %(default)s)")
    parser.add_argument("--samples", type=number(int, 1), default=64, help="of the flow, for the calibration (default %(default)s)")
    parser.add_argument("--map-images", type=number(int, 0), default=64, help="test images that get MAP too (default %(default)s)")
    parser.add_argument("--map-steps", type=number(int, 0), default=150, help="of MAP's ascent (default %(default)s)")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", default=ROOT / "figures", help="default figures/")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", default=ROOT / "benchmarks/results/inpainting.json", help="default %(default)s"
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    images = load_images("mnist", args.data_dir)
    with processes(torch.device("cpu")) as group:
        glow = load_glow(default_checkpoint("mnist")).set_precision(precision_for("auto", group.device))
        if group.first:
            fitted(images)
        if group.count > 1:
            dist.barrier()
        methods = Methods(images, glow, args.map_steps)
        # chunk by chunk, all masks of one before the next: a run that is stopped early has the same images under every mask
        jobs = [(calibrate, spec, first, ()) for first in range(0, args.samples, CHUNK) for spec in CALIBRATION]
        jobs += [(measure, spec, first, (first < args.map_images,)) for first in range(0, args.images, CHUNK) for spec in MASKS]
        for job, spec, first, more in tqdm(jobs[group.rank :: group.count], disable=not group.first):
            file = path_of(job, spec, first)
            if not file.is_file():
                result = job(spec, first, images, methods, *more)
                write_atomically(file, lambda temporary, result=result: torch.save(result, temporary))
        if group.count > 1:
            dist.barrier()
        if group.first:
            write(args, group.count)


def path_of(job, spec: str, first: int) -> Path:
    return FOLDER / f"{job.__name__}_{spec.replace(':', '')}_{first}.pt"


def write(args, count: int) -> None:
    """Puts the chunks together."""

    def chunks(job, spec: str, total: int) -> list[dict]:
        return [torch.load(path_of(job, spec, first), weights_only=True) for first in range(0, total, CHUNK)]

    measured = {spec: chunks(measure, spec, args.images) for spec in MASKS}
    calibrated = {spec: chunks(calibrate, spec, args.samples) for spec in CALIBRATION}
    sampler = [sampler_row(f"flow samples, {spec}", parts) for spec, parts in calibrated.items()]
    sampler += [sampler_row(f"test images, {spec}", parts) for spec, parts in measured.items()]
    judge = load_classifier(default_classifier("mnist"))
    launcher = ["python"] if count == 1 else ["torchrun", "--nproc-per-node", str(count)]
    flags = [(f"--{name.replace('_', '-')}", str(getattr(args, name))) for name in ("images", "samples", "map_images", "map_steps")]
    command = [*launcher, "benchmarks/inpainting_table.py", *(word for flag in flags for word in flag)]
    about = provenance(command, torch.device("cpu"))
    about |= {
        "hardware": f"{about['hardware']}, {count} process{'' if count == 1 else 'es'}",
        "cores": os.cpu_count(),
        "posterior": POSTERIOR,
        "map_steps": args.map_steps,
        "judge_parameters": sum(parameter.numel() for parameter in judge.parameters()),
    }
    rows = [row for spec, parts in measured.items() for row in rows_of(spec, parts)]
    content = {"about": about, "rows": rows, "sampler": sampler}
    write_atomically(args.output, lambda file: file.write_text(json.dumps(content, indent=1) + "\n"))
    print(f"wrote {args.output}")
    pixels = {f"the flow's own samples,\n{spec}": torch.cat([part["ranks"] for part in parts]) for spec, parts in calibrated.items()}
    pixels |= {f"test images,\n{spec}": torch.cat([part["ranks"] for part in measured[spec]]) for spec in CALIBRATION}
    save_figure(calibration_figure(pixels), args.figures, "inpainting_calibration.png")
    for row in rows:
        figures = f"{row['hole_psnr']:6.2f} dB   accuracy {row['digit_accuracy']:.1%}   ink {row['ink_ratio']:.2f}   CRPS {row['crps']:.4f}"
        print(f"{row['mask']:11} {row['method']:30} {figures}")


if __name__ == "__main__":
    main()
