"""Are the posterior's samples where an independent sampler goes? Long runs of plain Hamiltonian Monte Carlo beside `posterior_fill`.

    python benchmarks/posterior_check.py --data-dir DATA

fills held-out training images three ways: with `posterior_fill`; with plain HMC (unit masses, no annealing, no exchange, nothing shared
with posterior.py) from the nearest training images; and with the same from the truth. Were the model right, the truth would be one draw
from the posterior, and a chain from there in equilibrium from its first move on: its log p is where the others' should settle.

And does it matter where in their grey levels' bins the known pixels lie? Each run draws that anew; here, beside it, once for all runs.

Writes   benchmarks/results/posterior_check.json
Takes    about ten minutes on 2 CPU cores
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script's own folder is on the path, the modules lie one above
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, provenance, write_atomically
from flowlib.images.datasets import load_images
from flowlib.images.glow import Glow, default_checkpoint, load_glow, precision_for, quantise
from flowlib.inpainting.inpainter import dequantised, neighbours, posterior_fill
from flowlib.inpainting.scores import crps, hole_psnr, inside, ranks
from inpaint import masks_for

MASKS = ("square:14", "noise:0.5")
CHAINS = 4  # from neighbours; one from the truth


def plain_hmc(glow: Glow, start: Tensor, mask: Tensor, moves: int, leapfrog: int = 8) -> tuple[Tensor, Tensor]:
    """Chains from `start` (N, 1, H, W), v in (0, 1): v (moves / 2, N, 1, H, W) and log p(v) after each of the last half of the moves."""

    def energy(y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.requires_grad_()
            v = torch.where(mask, y.sigmoid(), start)
            log_p = glow.log_prob(v) + torch.where(mask, (v * (1 - v)).log(), 0).flatten(1).sum(1)
            return log_p.detach(), torch.autograd.grad(log_p.sum(), y)[0]

    y, step = torch.logit(start, eps=1e-6), torch.full((len(start), 1, 1, 1), 0.05)
    log_p, gradient = energy(y)
    kept = []
    for move in tqdm(range(moves), mininterval=5):
        momentum = torch.randn_like(y) * mask
        before = log_p - momentum.square().flatten(1).sum(1) / 2
        new, slope = y, gradient
        size = step * torch.empty_like(step).uniform_(0.8, 1.2)
        for _ in range(leapfrog):
            momentum = momentum + size / 2 * slope
            new = (new + size * momentum).detach()
            new_log_p, slope = energy(new)
            momentum = momentum + size / 2 * slope
        chance = (new_log_p - momentum.square().flatten(1).sum(1) / 2 - before).nan_to_num(nan=-torch.inf).clamp(max=0).exp()
        accepted = torch.rand(len(y)) < chance
        there = accepted[:, None, None, None]
        y, gradient, log_p = (
            torch.where(there, new.detach(), y),
            torch.where(there, slope, gradient),
            torch.where(accepted, new_log_p, log_p),
        )
        if move < moves / 2:
            step = step * (0.5 * (chance - 0.65)).exp()[:, None, None, None]
        else:
            kept.append(torch.where(mask, y.sigmoid(), start))
    return torch.stack(kept), torch.stack([glow.log_prob(v) for v in kept])


def held_out_holes(spec: str, images, count: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """The first `count` held-out images, one hole in each, the images with what is missing set to 0, and their seeds."""
    truth, seeds = images.held_out[:count], list(range(count))
    mask = torch.cat([masks_for(spec, 1, images.shape, 20_000 + seed) for seed in seeds])
    return truth, mask, torch.where(mask, 0, truth), seeds


def compare(spec: str, glow: Glow, images, count: int, moves: int) -> dict:
    """The three ways' means and log-densities over `count` images under one kind of mask."""
    truth, mask, masked, seeds = held_out_holes(spec, images, count)
    v = dequantised(glow, truth, seeds)
    start = time.perf_counter()
    ours = posterior_fill(glow, images.train, masked, mask, seeds, known=torch.where(mask, 0.5, v))
    seconds = {"posterior_fill": time.perf_counter() - start}
    near = torch.cat([dequantised(glow, guess, seeds) for guess in neighbours(masked, mask, images.train, CHAINS)])
    runs = {}
    for name, first in (
        ("HMC from neighbours", torch.where(mask.repeat(CHAINS, 1, 1, 1), near, v.repeat(CHAINS, 1, 1, 1))),
        ("HMC from the truth", v),
    ):
        start = time.perf_counter()
        samples, log_p = plain_hmc(glow, first, mask.repeat(len(first) // count, 1, 1, 1), moves)
        seconds[name] = time.perf_counter() - start
        runs[name] = samples.unflatten(1, (-1, count)).flatten(0, 1), log_p
    runs = {"posterior_fill": (ours["v"].transpose(0, 1), ours["log_prob"].T)} | runs
    at_truth, grey = glow.log_prob(v).mean(), truth / 255
    means = {name: torch.where(mask, quantise(samples, glow.levels).float().mean(0) / 255, grey) for name, (samples, _) in runs.items()}
    return {
        name: {
            "log_prob_above_truth": (log_p.mean() - at_truth).item(),
            "mean_hole_psnr": hole_psnr(means[name], grey, mask),
            "mean_hole_psnr_to_posterior_fill": hole_psnr(means[name], means["posterior_fill"], mask),
            "seconds": round(seconds[name], 1),
        }
        for name, (_, log_p) in runs.items()
    }


def compare_positions(spec: str, glow: Glow, images, count: int) -> dict:
    """The fills of `count` images where each run draws the known pixels' position in their bins, and where one draw serves all runs."""
    truth, mask, masked, seeds = held_out_holes(spec, images, count)
    v, grey, rows = dequantised(glow, truth, seeds), truth / 255, {}
    for name, known in (("each run its own", None), ("one for all runs", dequantised(glow, masked, seeds))):
        found = posterior_fill(glow, images.train, masked, mask, seeds, known=known)
        samples = found["samples"].transpose(0, 1) / 255
        rank = ranks(found["v"].transpose(0, 1), v, torch.Generator().manual_seed(0))
        rows[name] = {
            "mean_hole_psnr": hole_psnr(samples.mean(0), grey, mask),
            "crps": crps(samples, grey, mask).mean().item(),
            "coverage_90": inside(rank, 0.9)[mask].float().mean().item(),
        }
    return rows


@one_line_errors()
def main(argv=None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where MNIST lies (default data/)")
    parser.add_argument("--images", type=number(int, 1), default=4, help="held-out images a mask (default %(default)s)")
    parser.add_argument("--position-images", type=number(int, 1), default=32, help="for the known pixels' positions (default %(default)s)")
    parser.add_argument("--moves", type=number(int, 2), default=200, help="of each chain, 8 gradients each (default %(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", default=ROOT / "benchmarks/results/posterior_check.json", help="default %(default)s"
    )
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    images, device = load_images("mnist", args.data_dir), torch.device("cpu")
    glow = load_glow(default_checkpoint("mnist")).set_precision(precision_for("auto", device)).requires_grad_(False)
    with torch.no_grad():
        results = {spec: compare(spec, glow, images, args.images, args.moves) for spec in MASKS}
        positions = {spec: compare_positions(spec, glow, images, args.position_images) for spec in MASKS}
    flags = {"--images": args.images, "--moves": args.moves, "--position-images": args.position_images}
    about = provenance(["python", "benchmarks/posterior_check.py", *(str(word) for flag in flags.items() for word in flag)], device)
    content = {"about": about, "results": results, "positions": positions}
    write_atomically(args.output, lambda file: file.write_text(json.dumps(content, indent=1) + "\n"))
    for part in (results, positions):
        for spec, rows in part.items():
            for name, row in rows.items():
                print(f"{spec:11} {name:22} " + "   ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
