"""Fills holes in test images with a trained Glow, without training anything for the task.

    python inpaint.py

cuts random squares and random noise out of test images and finds the missing pixels that maximise the likelihood of the whole image,
argmax over δ of log p(x_known + δ · M), M = 1 where a pixel is missing. The model's weights and the known pixels stay as they are.

What to expect: the likeliest fill of a square is *black*, and it is likelier than the truth. The maximum of a density is not a typical
draw from it: a plain background beats any particular stroke. The figure says so in numbers, and shows beside it the local maximum that
is found from the nearest training image: less likely, and what a person would call the better answer.

Reads    checkpoints/glow_mnist.pt and MNIST's images (or, where MNIST cannot be had, the digits' checkpoint and images)
Writes   figures/batch_inpainting_result.png
Takes    about two minutes on one CPU core
"""

import time

import torch
from matplotlib.figure import Figure
from torch import Tensor

from common import Parser, UserError, number, one_line_errors, require_writable, save_figure, write_metrics
from glow import Glow, default_checkpoint, load_glow, quantise
from images import TITLES, Images, add_dataset_flags, load_images
from inpainting import hole_mse, hole_psnr, ink_ratio, map_inpaint, nearest_neighbours, noise_masks, square_masks

STARTS = ("black", "mean", "noise", "neighbour")
HOLE_COLOUR = (1.0, 0.55, 0.1)

# ---------------------------------------------------------------- data


def make_masks(kind: str, images: Images, n: int, side: int, fraction: float, seed: int) -> Tensor:
    """n masks, True where missing, of kind "square" or "noise". Raises UserError if they do not fit into the images."""
    _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    try:
        if kind == "square":
            return square_masks(n, height, width, side, generator)
        return noise_masks(n, height, width, fraction, generator)
    except ValueError as error:
        raise UserError(str(error)) from None


def make_starts(names: list[str], images: Images, masked: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Guesses to climb from, (S, B, 1, H, W) in (0, 1), none of which sees the truth under the hole.

    black: the middle of the black bin; mean: the training images' pixel mean; noise: uniform; neighbour: the training image that is
    nearest in the known pixels.
    """
    black = torch.full(masked.shape, 0.5)
    starts = {
        "black": lambda: black,
        "mean": lambda: (images.train.float().mean(0) + 0.5).expand(masked.shape),
        "noise": lambda: images.levels * torch.rand(masked.shape, generator=torch.Generator().manual_seed(seed)),
        "neighbour": lambda: images.train[nearest_neighbours(masked.float(), mask, images.train.float())[:, 0]] + 0.5,
    }
    return torch.stack([starts[name]() for name in names]) / images.levels


# ---------------------------------------------------------------- fill


def fill(glow: Glow, images: Images, truth: Tensor, mask: Tensor, starts: list[str], *, steps: int, seed: int) -> dict[str, Tensor]:
    """Fills each image, uint8 (B, 1, H, W), from each start.

    Returns truth, mask, `filled` (the likeliest of all), `start` (which start it came from), `fills` (S, B, 1, H, W) from every start,
    and the log-densities of v in nats: log_prob and start_log_prob (B,), fills_log_prob (S, B), truth_log_prob (B,).
    """
    device = next(glow.parameters()).device
    masked = torch.where(mask, 0, truth)  # nothing below sees the truth under the hole, but for `truth_log_prob`
    known = glow.dequantise(masked.to(device), torch.Generator().manual_seed(seed))
    guesses = make_starts(starts, images, masked, mask, seed)
    found = map_inpaint(glow.log_prob, known, mask.to(device), guesses.to(device), steps=steps)
    with torch.no_grad():
        true_v = glow.dequantise(truth.to(device), torch.Generator().manual_seed(seed))
        truth_log_prob = glow.log_prob(torch.where(mask.to(device), true_v, known)).cpu()
    return {
        "truth": truth,
        "mask": mask,
        "filled": torch.where(mask, quantise(found.x, glow.levels).cpu(), masked),
        "fills": torch.where(mask, quantise(found.all_x, glow.levels).cpu(), masked),
        "start": found.start.cpu(),
        "start_log_prob": found.start_log_prob.cpu(),
        "log_prob": found.log_prob.cpu(),
        "fills_log_prob": found.all_log_prob.cpu(),
        "truth_log_prob": truth_log_prob,
    }


# ---------------------------------------------------------------- evaluate


def evaluate(result: dict[str, Tensor], levels: int, starts: list[str]) -> dict:
    """How good the fills are, the likeliest and each start's, over the missing pixels alone (grey levels in [0, 1])."""
    truth, mask = result["truth"] / (levels - 1), result["mask"]

    def figures(filled: Tensor, log_prob: Tensor) -> dict:
        filled = filled / (levels - 1)
        return {
            "hole_psnr": hole_psnr(filled, truth, mask),
            "hole_mse": hole_mse(filled, truth, mask).nanmean().item(),
            "ink_ratio": ink_ratio(filled, truth, mask),
            "log_prob": log_prob.mean().item(),
            "likelier_than_truth": (log_prob > result["truth_log_prob"]).float().mean().item(),
        }

    return {
        "images": len(truth),
        "truth_log_prob": result["truth_log_prob"].mean().item(),
        "map": figures(result["filled"], result["log_prob"])
        | {"won_by": {name: int((result["start"] == i).sum()) for i, name in enumerate(starts)}},
        "starts": {name: figures(result["fills"][i], result["fills_log_prob"][i]) for i, name in enumerate(starts)},
    }


def print_figures(name: str, figures: dict) -> None:
    """A table of one mask kind's fills."""
    print(f"{name}, {figures['images']} images: log p of the truth {figures['truth_log_prob']:,.0f} nats")
    won = ", ".join(f"{start} {count}" for start, count in figures["map"]["won_by"].items() if count)
    for label, row in {
        f"MAP (likeliest, from {won})": figures["map"],
        **{f"from {start}": row for start, row in figures["starts"].items()},
    }.items():
        print(
            f"  {label:40} hole PSNR {row['hole_psnr']:5.1f} dB   MSE {row['hole_mse']:.4f}   ink ratio {row['ink_ratio']:.2f}   "
            f"log p {row['log_prob']:,.0f}   above the truth's: {row['likelier_than_truth']:.0%}"
        )


# ---------------------------------------------------------------- figure


def inpainting_figure(results: dict[str, dict[str, Tensor]], levels: int, starts: list[str], title: str, most: int = 12) -> Figure:
    """For each mask kind the rows truth, masked (the hole in orange), likeliest fill, and the local maximum that the last start led to."""
    columns = min(most, max(len(result["truth"]) for result in results.values()))
    figure = Figure(figsize=(1.05 * columns + 1.2, 5 * len(results)), layout="constrained")
    figure.suptitle(title)
    for part, (name, result) in zip(figure.subfigures(len(results), 1, squeeze=False)[:, 0], results.items()):
        part.suptitle(name, fontsize=10)
        log_p = {key: [f"{value:,.0f}" for value in result[key].tolist()] for key in ("start_log_prob", "log_prob", "truth_log_prob")}
        last = [f"{value:,.0f}" for value in result["fills_log_prob"][-1].tolist()]
        colour = torch.tensor(HOLE_COLOUR).reshape(3, 1, 1)
        rows = (
            ("truth", result["truth"] / (levels - 1), log_p["truth_log_prob"]),
            ("masked", torch.where(result["mask"], colour, result["truth"] / (levels - 1)), None),
            ("MAP", result["filled"] / (levels - 1), [f"start {a}\n{b}" for a, b in zip(log_p["start_log_prob"], log_p["log_prob"])]),
            (f"local max.,\nfrom {starts[-1]}", result["fills"][-1] / (levels - 1), last),
        )
        panels = part.subplots(len(rows), columns, squeeze=False)
        for row, (label, pictures, captions) in enumerate(rows):
            panels[row, 0].set_ylabel(label, fontsize=9)
            for column, panel in enumerate(panels[row]):
                panel.set(xticks=[], yticks=[])
                if column >= len(pictures):
                    panel.set_visible(False)
                    continue
                panel.imshow(pictures[column].expand(3, -1, -1).permute(1, 2, 0).numpy(), vmin=0, vmax=1)
                if captions:
                    panel.set_xlabel(captions[column], fontsize=7, labelpad=2)
    return figure


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    parser.add_argument(
        "--images", type=number(int, 1), default=12, help="test images per mask kind; the figure shows up to 12 (default %(default)s)"
    )
    parser.add_argument("--side", type=number(int, 1), help="side of the missing squares in pixels (default: half the image)")
    parser.add_argument(
        "--fraction", type=number(float, 0, 1), default=0.5, help="share of pixels that the noise masks miss (default %(default)s)"
    )
    parser.add_argument(
        "--starts", nargs="+", choices=STARTS, default=list(STARTS), help="fills to climb from; the likeliest result wins (default: all)"
    )
    parser.add_argument("--steps", type=number(int, 0), default=300, help="steps of the ascent (default %(default)s)")
    parser.add_common_flags(checkpoint="the Glow to fill with (default checkpoints/glow_DATASET.pt)")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    images = load_images(args.dataset, args.data_dir)
    checkpoint = args.checkpoint or default_checkpoint(images.name)
    glow = load_glow(checkpoint, args.device, images.shape, images.levels)
    require_writable(args.figures)
    truth = images.test[: args.images]
    side = args.side or images.shape[1] // 2
    names = {"square": f"square holes of {side} x {side} pixels", "noise": f"{args.fraction:.0%} of the pixels missing at random"}
    masks = {kind: make_masks(kind, images, len(truth), side, args.fraction, args.seed) for kind in names}
    results = {names[kind]: fill(glow, images, truth, mask, args.starts, steps=args.steps, seed=args.seed) for kind, mask in masks.items()}
    figures = {name: evaluate(result, images.levels, args.starts) for name, result in results.items()}
    for name in names.values():
        print_figures(name, figures[name])
    title = f"Zero-shot inpainting on {TITLES[images.name]}: missing pixels (orange) that maximise log p(image), given below in nats"
    save_figure(inpainting_figure(results, images.levels, args.starts, title), args.figures, "batch_inpainting_result.png")
    if args.metrics:
        metrics = {"data": images.name, **{kind: {"mask": name} | figures[name] for kind, name in names.items()}}
        write_metrics(args.metrics, metrics, seconds=time.perf_counter() - start, device=args.device, seed=args.seed)


if __name__ == "__main__":
    main()
