"""Are the fills right where the right answer is known? The engine on a Gaussian mixture of digits.

    python benchmarks/known_answer.py --data-dir DATA

The mixture of the inpainting table, 30 components on 64 principal components of MNIST,
is taken as the true density of 784 real pixels. Test images and 10,000 reference images
are drawn from it, and holes are cut. Four methods fill them: exact draws from the
conditional distribution, the references that are most similar, the engine of
inpaint.py, and this engine from random references. A mode is a component of the
mixture. Its weight among the fills should be its probability given what is observed.

Writes   benchmarks/results/known_answer.json
Takes    a quarter of an hour on one CPU core, a third of it for the mixture
"""

import sys
from pathlib import Path

import torch
from scipy.stats import kstest
from torch import Tensor
from tqdm import tqdm

# the modules lie one folder up
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.about import provenance
from benchmarks.baselines import Mixture
from benchmarks.inpainting_methods import fitted_mixture
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, write_json
from flowlib.images.datasets import load_images
from flowlib.inpainting.density import HoleDensity
from flowlib.inpainting.initial_fills import similar_images
from flowlib.inpainting.inpainter import FillSettings, run_engine
from flowlib.inpainting.masks import draw_masks
from flowlib.inpainting.scores import crps, inside, ranks, travelled
from flowlib.rng import Streams, rng

KINDS = ("square:14", "square:18", "noise:0.9", "top")
SHAPE, REFERENCES = (1, 28, 28), 10_000
SETTINGS = FillSettings()
CHAINS = SETTINGS.chains


def exact_draws(mixture: Mixture, x: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Draws from the conditional distribution, (B, CHAINS, 1, 28, 28)."""
    noise = rng(seed, "exact draws")
    rows = [
        mixture.draw(image, hole, CHAINS, noise) for image, hole in flat_rows(x, mask)
    ]
    return torch.stack(rows).unflatten(2, SHAPE)


def flat_rows(x: Tensor, mask: Tensor):
    """Each image and its hole as vectors."""
    return zip(x.flatten(1), mask.flatten(1))


def engine(
    mixture: Mixture, x: Tensor, mask: Tensor, similar: Tensor, width: float
) -> tuple:
    """What `Inpainter.sample` does after it has found the `similar` images (B, K, 1, 28, 28).

    Returns the fills, (B, CHAINS, 1, 28, 28), and how far they have travelled, (B,).
    """
    density = HoleDensity(mixture.log_prob, x, mask, unit_interval=False, chunk=1024)
    similar = density.encode(similar)
    streams = Streams(range(len(x)), "fills", similar)

    def widths(y: Tensor) -> Tensor:
        return torch.full_like(y, width)

    y = similar[:, :CHAINS]
    start, chains = run_engine(
        density, y, similar, widths, streams, SETTINGS, lr=width / 2
    )
    fills = density.decode(chains.y)
    return fills, travelled(density.decode(start), fills)


def typical_width(mixture: Mixture, x: Tensor) -> float:
    """1 / root mean square of the gradient of log p: how far a pixel can move."""
    density = HoleDensity(
        mixture.log_prob, x, torch.ones_like(x, dtype=torch.bool), False
    )
    return (
        density.value_and_grad(x.flatten(1)[:, None])[1].square().mean().rsqrt().item()
    )


def make_row(
    mixture: Mixture,
    fills: Tensor,
    x: Tensor,
    mask: Tensor,
    component: Tensor,
    seed: int,
) -> dict:
    """One method's numbers: the modes' weights, and the pixels' distribution."""
    # (B, K)
    weights = torch.stack([mixture.given(*row)[0] for row in flat_rows(x, mask)])
    joint = mixture.component_log_prob(fills.flatten(0, 1))
    mine = joint.softmax(1).unflatten(0, fills.shape[:2]).mean(1)  # (B, K)
    ties = rng(seed, "ties")
    rank = ranks(
        joint.logsumexp(1).unflatten(0, fills.shape[:2]), mixture.log_prob(x), ties
    )
    return {
        "total_variation": (mine - weights).abs().sum(1).mean().item() / 2,
        "right_mode": mine.gather(1, component[:, None]).mean().item(),
        "right_mode_exact": weights.gather(1, component[:, None]).mean().item(),
        "crps": crps(fills, x, mask).mean().item(),
        "coverage_90": inside(ranks(fills, x, ties)[mask], 0.9).double().mean().item(),
        "log_p_rank_p": float(kstest(rank.numpy(), "uniform").pvalue),
    }


def measure(
    mixture: Mixture, kind: str, count: int, references: Tensor, seed: int
) -> list[dict]:
    """A row for each method under one kind of mask."""
    x, component = mixture.sample(count, rng(seed, "truth"))
    x, mask = x.unflatten(1, SHAPE), draw_masks(kind, count, SHAPE, seed)
    masked, number = torch.where(mask, 0, x), CHAINS * SETTINGS.similar
    similar = similar_images(masked, mask, references, number)
    chosen = torch.randint(
        len(references), (count, number), generator=rng(seed, "random starts")
    )
    width, nearest = typical_width(mixture, references[:64]), similar[:, :CHAINS]
    ours, far = engine(mixture, x, mask, similar, width)
    random, far_random = engine(mixture, x, mask, references[chosen], width)
    found = {
        "exact draws": (exact_draws(mixture, x, mask, seed), None),
        "most similar references": (
            torch.where(mask[:, None], nearest, x[:, None]),
            None,
        ),
        "the engine": (ours, far.median().item()),
        "the engine, random starts": (random, far_random.median().item()),
    }
    rows = []
    for name, (fills, distance) in found.items():
        row = {"mask": kind, "method": name, "images": count, "travelled": distance}
        rows.append(row | make_row(mixture, fills, x, mask, component, seed))
    return rows


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, output = parser.add_argument, ROOT / "benchmarks/results/known_answer.json"
    add(
        "--data-dir",
        type=Path,
        default=ROOT / "data",
        help="where MNIST lies (default data/)",
    )
    add("--images", type=number(int, 1), default=64, help="for each kind of mask (64)")
    add("--seed", type=number(int, 0), default=0, help="of all random numbers (0)")
    add("--output", type=Path, metavar="FILE", default=output, help="the results file")
    return parser.parse_args(argv)


@one_line_errors()
@torch.no_grad()
def main(argv=None) -> None:
    args = parse_args(argv)
    mixture = fitted_mixture(load_images("mnist", args.data_dir))
    references, _ = mixture.sample(REFERENCES, rng(args.seed, "references"))
    references, rows = references.unflatten(1, SHAPE), []
    for kind in tqdm(KINDS):
        rows += measure(mixture, kind, args.images, references, args.seed)
    command = ["python", "benchmarks/known_answer.py", "--images", str(args.images)]
    about = provenance(command, torch.device("cpu"))
    write_json(args.output, {"about": about, "rows": rows})
    for row in rows:
        texts = [
            f"{value:.3g}" if isinstance(value, float) else value
            for value in row.values()
        ]
        print("   ".join(f"{key} {text}" for key, text in zip(row, texts)))


if __name__ == "__main__":
    main()
