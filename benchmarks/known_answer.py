"""Are the fills right where the right answer is known? A Gaussian mixture answers.

    python -m benchmarks.known_answer --data-dir DATA

The mixture of the inpainting table, 30 components on 64 principal components of MNIST,
is taken as the true density of 784 real pixels. Test images and 10,000 reference images
are drawn from it, and holes are cut. Four methods fill them: exact draws from the
conditional distribution, the references that are most similar, the engine of
inpaint.py, and this engine from random references. A mode is a component of the
mixture. Its weight among the fills should be its probability given what is observed.

Writes   benchmarks/results/known_answer.json
Takes    three minutes on one CPU core, most of them for the mixture
"""

from collections.abc import Iterator

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
from benchmarks.baselines import Mixture
from benchmarks.inpainting_methods import fitted_mixture
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import write_json
from flowlib.images.datasets import load_images
from flowlib.inpainting.density import HoleDensity
from flowlib.inpainting.inpainter import FillSettings, run_engine
from flowlib.inpainting.masks import draw_masks
from flowlib.inpainting.refine import add_noise, similar_images
from flowlib.inpainting.scores import crps, inside, ranks
from flowlib.rng import Streams, rng

KINDS = ("square:14", "square:18", "noise:0.9", "top")
SHAPE = (1, 28, 28)
REFERENCES = 10_000
SETTINGS = FillSettings()
FILLS = SETTINGS.fills

# ---------------------------------------------------------------- the methods


def exact_draws(mixture: Mixture, x: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Draws from the conditional distribution, (B, FILLS, 1, 28, 28)."""
    noise = rng(seed, "exact draws")
    drawn = []
    for image, hole in flat_rows(x, mask):
        drawn.append(mixture.draw(image, hole, FILLS, noise))
    return torch.stack(drawn).unflatten(2, SHAPE)


def flat_rows(x: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image and its hole as vectors."""
    return zip(x.flatten(1), mask.flatten(1))


def engine(
    mixture: Mixture, x: Tensor, mask: Tensor, similar: Tensor, width: float
) -> Tensor:
    """What `Inpainter.find_fills` does with the `similar` images (B, K, 1, 28, 28).

    Returns the fills, (B, FILLS, 1, 28, 28).
    """
    density = HoleDensity(mixture.log_prob, x, mask, unit_interval=False, chunk=1024)
    similar = density.encode(similar)
    streams = Streams(range(len(x)), "fills", similar)
    y = similar[:, :FILLS]
    y = run_engine(density, y, similar, streams, SETTINGS, lr=width / 2)
    return density.decode(add_noise(density, y, torch.full_like(y, width), streams))


def typical_width(mixture: Mixture, x: Tensor) -> float:
    """1 / root mean square of the gradient of log p: how far a pixel can move."""
    everything = torch.ones_like(x, dtype=torch.bool)
    density = HoleDensity(mixture.log_prob, x, everything, unit_interval=False)
    _, grad = density.value_and_grad(x.flatten(1)[:, None])
    return grad.square().mean().rsqrt().item()


# ---------------------------------------------------------------- measure


def make_row(
    mixture: Mixture,
    fills: Tensor,
    x: Tensor,
    mask: Tensor,
    component: Tensor,
    seed: int,
) -> dict:
    """One method's numbers: the modes' weights, and the pixels' distribution."""
    from scipy.stats import kstest

    # The modes' probabilities, (B, K), and their weights among the fills.
    exact = torch.stack([mixture.given(*row)[0] for row in flat_rows(x, mask)])
    joint = mixture.component_log_prob(fills.flatten(0, 1))  # (B C, K)
    weights = joint.softmax(1).unflatten(0, fills.shape[:2]).mean(1)  # (B, K)

    ties = rng(seed, "ties")
    log_p = joint.logsumexp(1).unflatten(0, fills.shape[:2])  # (B, C)
    rank = ranks(log_p, mixture.log_prob(x), ties)
    pixel_rank = ranks(fills, x, ties)[mask]
    return {
        "total_variation": (weights - exact).abs().sum(1).mean().item() / 2,
        "right_mode": weights.gather(1, component[:, None]).mean().item(),
        "right_mode_exact": exact.gather(1, component[:, None]).mean().item(),
        "crps": crps(fills, x, mask).mean().item(),
        "coverage_90": inside(pixel_rank, 0.9).double().mean().item(),
        "log_p_rank_p": float(kstest(rank.numpy(), "uniform").pvalue),
    }


def measure(
    mixture: Mixture, kind: str, count: int, references: Tensor, seed: int
) -> list[dict]:
    """A row for each method under one kind of mask."""
    x, component = mixture.sample(count, rng(seed, "truth"))
    x = x.unflatten(1, SHAPE)
    mask = draw_masks(kind, count, SHAPE, seed)

    # Where the engine starts: from the most similar references, or from any.
    k = FILLS * SETTINGS.similar
    similar = similar_images(torch.where(mask, 0, x), mask, references, k)
    start_noise = rng(seed, "random starts")
    chosen = torch.randint(len(references), (count, k), generator=start_noise)

    width = typical_width(mixture, references[:64])
    nearest = torch.where(mask[:, None], similar[:, :FILLS], x[:, None])
    others = references[chosen]
    found = {
        "exact draws": exact_draws(mixture, x, mask, seed),
        "most similar references": nearest,
        "the engine": engine(mixture, x, mask, similar, width),
        "the engine, random starts": engine(mixture, x, mask, others, width),
    }

    rows = []
    for name, fills in found.items():
        row = {"mask": kind, "method": name, "images": count}
        rows.append(row | make_row(mixture, fills, x, mask, component, seed))
    return rows


# ---------------------------------------------------------------- table


def known_answer_table() -> str:
    """The fills of a Gaussian mixture, where the right answer is known."""
    results = load("known_answer")
    rows = []
    for row in results["rows"]:
        cells = [
            row["mask"],
            row["method"],
            f"{row['total_variation']:.3f}",
            f"{row['right_mode']:.2f} of {row['right_mode_exact']:.2f}",
            f"{row['crps']:.4f}",
            f"{row['coverage_90']:.1%}",
            f"{row['log_p_rank_p']:.1g}",
        ]
        rows.append(cells)

    header = ["mask", "method", "error of the modes' weights", "on the right mode"]
    header += ["CRPS", "90 % interval", "p of the rank of log p"]
    count = f"{results['rows'][0]['images']} images a mask"
    return table(header, rows) + measured_on(results["about"], count)


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_data_flag(parser)
    add("--images", type=number(int, 1), default=64, help="images of each kind of mask")
    add("--seed", type=number(int, 0), default=0, help="seed of all random numbers")
    add_output_flag(parser, "known_answer")
    return parser.parse_args(argv)


@one_line_errors()
@torch.no_grad()
def main(argv=None) -> None:
    args = parse_args(argv)
    mixture = fitted_mixture(load_images("mnist", args.data_dir))
    references, _ = mixture.sample(REFERENCES, rng(args.seed, "references"))
    references = references.unflatten(1, SHAPE)

    rows = []
    for kind in tqdm(KINDS):
        rows += measure(mixture, kind, args.images, references, args.seed)

    command = command_of("known_answer", "--images", args.images)
    about = provenance(command, torch.device("cpu"))
    write_json(args.output, {"about": about, "rows": rows})
    print_rows(rows)


if __name__ == "__main__":
    main()
