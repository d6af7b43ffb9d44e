"""Do the samples come to where an independent sampler goes? Long chains of plain HMC beside ours.

    python benchmarks/posterior_check.py --data-dir DATA

fills held-out images three ways: with `Inpainter.sample`; with plain Hamiltonian Monte Carlo (equal
masses, no refinement, nothing shared with hmc.py) from similar training images; and with the same
from the truth. If the model were right, the truth would be one draw from the posterior. A chain
from there would be in equilibrium from its first move on: the others' log p should settle at its.

Where in its grey level's bin an observed pixel lies, each of our chains draws anew. A second table
compares this with one draw for all chains.

Writes   benchmarks/results/posterior_check.json
Takes    about ten minutes on 2 CPU cores
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules lie one folder up
from benchmarks.about import provenance
from benchmarks.inpainting_methods import cut_holes
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, write_json
from flowlib.images.datasets import Images, load_images
from flowlib.images.glow import Glow, default_checkpoint, load_glow, precision_for
from flowlib.inpainting.initial_fills import similar_images
from flowlib.inpainting.inpainter import Inpainter
from flowlib.inpainting.scores import crps, hole_psnr, inside, ranks
from flowlib.rng import rng

KINDS = ("square:14", "noise:0.5")
CHAINS = 4  # from similar images; one from the truth


def run_plain_hmc(
    glow: Glow, start: Tensor, mask: Tensor, moves: int, leapfrog: int = 8
) -> tuple[Tensor, Tensor]:
    """Chains from `start` (N, 1, H, W): v and log p(v) after each of the last half of the moves.

    Shapes (moves / 2, N, 1, H, W) and (moves / 2, N).
    """

    def minus_potential(y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.requires_grad_()
            v = torch.where(mask, y.sigmoid(), start)
            log_p = glow.log_prob(v) + torch.where(mask, (v * (1 - v)).log(), 0).flatten(1).sum(1)
            return log_p.detach(), torch.autograd.grad(log_p.sum(), y)[0]

    y, step = torch.logit(start, eps=1e-6), torch.full((len(start), 1, 1, 1), 0.05)
    log_p, grad = minus_potential(y)
    kept = []
    for move in tqdm(range(moves), mininterval=5):
        momentum = torch.randn_like(y) * mask
        energy = momentum.square().flatten(1).sum(1) / 2 - log_p
        new, new_grad, size = y, grad, step * torch.empty_like(step).uniform_(0.8, 1.2)
        for _ in range(leapfrog):
            momentum = momentum + size / 2 * new_grad
            new = (new + size * momentum).detach()
            new_log_p, new_grad = minus_potential(new)
            momentum = momentum + size / 2 * new_grad
        gain = energy - momentum.square().flatten(1).sum(1) / 2 + new_log_p
        chance = gain.nan_to_num(nan=-torch.inf).clamp(max=0).exp()
        accepted = torch.rand(len(y)) < chance
        there = accepted[:, None, None, None]
        y, grad = torch.where(there, new.detach(), y), torch.where(there, new_grad, grad)
        log_p = torch.where(accepted, new_log_p, log_p)
        if move < moves / 2:
            step = step * (0.5 * (chance - 0.65)).exp()[:, None, None, None]
        else:
            kept.append(torch.where(mask, y.sigmoid(), start))
    return torch.stack(kept), torch.stack([glow.log_prob(v) for v in kept])


def compare_samplers(
    kind: str, inpainter: Inpainter, images: Images, count: int, moves: int
) -> dict:
    """The three ways' means and log-densities over `count` images under one kind of mask."""
    glow, problem = (
        inpainter.glow,
        cut_holes(kind, inpainter, images.held_out[:count], range(count)),
    )
    mask, truth = problem.mask, problem.truth
    problem.observed = truth.v
    start = time.perf_counter()
    ours = inpainter.sample(problem)
    seconds = {"ours": time.perf_counter() - start}
    runs = {"ours": (ours["samples_v"].transpose(0, 1), ours["log_prob"].T)}
    near = similar_images(problem.masked, mask, images.train, CHAINS).transpose(0, 1)
    near = glow.dequantize(near.flatten(0, 1), rng(0, "chains"))  # (CHAINS · B, 1, H, W)
    for name, first, chains in (
        ("HMC from neighbors", near, CHAINS),
        ("HMC from the truth", truth.v, 1),
    ):
        start, holes = time.perf_counter(), mask.repeat(chains, 1, 1, 1)
        first = torch.where(holes, first, truth.v.repeat(chains, 1, 1, 1))
        samples, log_p = run_plain_hmc(glow, first, holes, moves)
        seconds[name] = time.perf_counter() - start
        runs[name] = samples.unflatten(1, (chains, count)).flatten(0, 1), log_p
    rows = {}
    for name, (samples, log_p) in runs.items():
        mean = torch.where(mask, glow.quantize(samples).float().mean(0) / 255, truth.grey)
        rows[name] = {
            "log_prob_above_truth": (log_p.mean() - truth.log_prob.mean()).item(),
            "mean_hole_psnr": hole_psnr(mean, truth.grey, mask),
            "seconds": round(seconds[name], 1),
        }
    return rows


def compare_positions(kind: str, inpainter: Inpainter, images: Images, count: int) -> dict:
    """Each chain draws the observed pixels' place in their bins, against one draw for all."""
    problem, rows = cut_holes(kind, inpainter, images.held_out[:count], range(count)), {}
    mask, truth = problem.mask, problem.truth
    once = inpainter.truth(problem.masked, problem.seeds).v
    for name, observed in (("each chain its own", None), ("one for all chains", once)):
        problem.observed = observed
        found = inpainter.sample(problem)
        samples, rank = found["samples"] / 255, ranks(found["samples_v"], truth.v, rng(0, "ties"))
        rows[name] = {
            "mean_hole_psnr": hole_psnr(samples.mean(1), truth.grey, mask),
            "crps": crps(samples, truth.grey, mask).mean().item(),
            "coverage_90": inside(rank, 0.9)[mask].float().mean().item(),
        }
    return rows


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, output = parser.add_argument, ROOT / "benchmarks/results/posterior_check.json"
    add("--data-dir", type=Path, default=ROOT / "data", help="where MNIST lies (default data/)")
    add("--images", type=number(int, 1), default=4, help="held-out images a mask (%(default)s)")
    add(
        "--position-images",
        type=number(int, 1),
        default=32,
        help="for the second table (%(default)s)",
    )
    add("--moves", type=number(int, 2), default=200, help="of each plain chain (%(default)s)")
    add(
        "--output", type=Path, metavar="FILE", default=output, help="default benchmarks/results/..."
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    images, device = load_images("mnist", args.data_dir), torch.device("cpu")
    glow = load_glow(default_checkpoint("mnist")).set_precision(precision_for("auto", device))
    inpainter = Inpainter(glow.requires_grad_(False), images.train)
    tables = {"results": {}, "positions": {}}
    with torch.no_grad():
        for kind in KINDS:
            tables["results"][kind] = compare_samplers(
                kind, inpainter, images, args.images, args.moves
            )
            tables["positions"][kind] = compare_positions(
                kind, inpainter, images, args.position_images
            )
    flags = {
        name: getattr(args, name.replace("-", "_"))
        for name in ("images", "moves", "position-images")
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    about = provenance(["python", "benchmarks/posterior_check.py", *words], device)
    write_json(args.output, {"about": about, **tables})
    for table in tables.values():
        for kind, rows in table.items():
            for name, row in rows.items():
                numbers = "   ".join(f"{key} {value:.3f}" for key, value in row.items())
                print(f"{kind:11} {name:20} {numbers}")


if __name__ == "__main__":
    main()
