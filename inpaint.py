"""Fills holes in images with a trained Glow, which was never trained to do so.

    python inpaint.py

cuts holes out of test images and asks two questions. Which missing pixels maximize the
likelihood of the whole image? This is the MAP estimate, argmax over δ of
log p(x + δ · M), where x are the observed pixels and M is 1 where one is missing. What
could be there? Twelve plausible fills show it, with their mean and how much they
differ. The model's weights and the observed pixels stay as they are.

The MAP estimate of a square hole is often *black*, and it is likelier than the truth:
the maximum of a density is not a typical draw from it. Plausible fills are similar
training images, refined until the flow finds them likely. They are no exact samples:
each stays near the image that it began as, so the share of a digit among them is a
rough estimate.

    python inpaint.py --image photo.png --mask mask.png  your picture; white is missing
    python inpaint.py --image folder/ --mask square:14   many pictures, any mask
    python inpaint.py --mask top noise:0.9               other masks for test images
    torchrun --nproc-per-node 2 inpaint.py               processes share the images

A mask is square:SIDE, noise:FRACTION, top, bottom, left, right, or a picture. MNIST is
needed for test images alone; where it cannot be had, scikit-learn's digits take its
place.

Writes   figures/batch_inpainting_result.png; the name of other data than MNIST comes
         first. With --image instead, in filled/: results.json, and of each picture
         NAME.png (all at one glance), NAME_filled.png (the picture itself, with the
         fill that is nearest to the others), and as the model sees it NAME_mean.png,
         NAME_map.png, NAME_uncertainty.png and NAME_fill_1.png ... of each fill
Takes    20 seconds on one CPU core (AMD EPYC with bfloat16)
"""

import argparse
import textwrap
import time
from pathlib import Path

import torch
from torch import Tensor

from flowlib import files
from flowlib.cli import Parser, number, one_line_errors, threads
from flowlib.distributed import Processes, processes
from flowlib.files import UserError
from flowlib.images import user_images
from flowlib.images.classifier import Classifier, load_classifier
from flowlib.images.datasets import (
    Images,
    add_dataset_flags,
    data_name,
    figure_name,
    load_images,
    load_together,
)
from flowlib.images.glow import PRECISIONS, Glow, choose_glow, precision_for
from flowlib.images.user_images import Picture
from flowlib.inpainting.fill import Fill, Problem
from flowlib.inpainting.inpainter import FillSettings, Inpainter
from flowlib.inpainting.masks import describe_mask, draw_masks
from flowlib.inpainting.scores import COVERAGES
from flowlib.rng import rng

SAMPLES = 2000  # of the flow: reference images where there are no training images
UNFAMILIAR = -4  # standard deviations of the training images' log p
EXPLANATION = """\
  Each fill is near the similar image that it came from. How it looks is the flow's,
  how many of the fills are a 4, say, is the similar images'."""


def find_references(glow: Glow, data_dir: Path, seed: int) -> Tensor:
    """The Glow's training images, if they are on this disk; otherwise its samples."""
    # A name that no data set has stands for a model that does not say its data.
    source = glow.metrics.get("data", "unknown data")
    try:
        images = load_images(source, data_dir, download=False)
        if images.made_from == glow.made_from:
            return images.train
    except UserError:
        pass
    print("the training images are not here: samples of the flow take their place")
    return glow.quantize(glow.sample(SAMPLES, rng(seed, "reference images"))).cpu()


def find_classifier(glow: Glow) -> Classifier | None:
    """The classifier of the Glow's data, if there is one."""
    file = files.find_checkpoint(f"classifier_{glow.made_from.get('name')}.pt")
    return load_classifier(file, glow.device) if file.is_file() else None


def fill_together(
    group: Processes,
    inpainter: Inpainter,
    problem: Problem,
    label: str,
) -> Fill:
    """Fills a problem's images, shared among the processes, with a progress bar."""
    rows = group.share(torch.arange(len(problem))).tolist()
    label = label if group.first else None
    fill = inpainter.fill(problem[rows], label) if rows else None
    return Fill.cat([part for part in group.gather(fill) if part])


# ---------------------------------------------------------------- test images


def fill_test_images(
    inpainter: Inpainter,
    problems: dict[str, Problem],
    group: Processes,
    figures: Path,
    name: str,
) -> dict:
    """Fills each kind of holes; prints tables and draws the figure of the data `name`.

    Returns the metrics of each kind.
    """
    files.require_writable(figures)
    fills = {
        mask: fill_together(group, inpainter, problem, mask)
        for mask, problem in problems.items()
    }
    if not group.first:
        return {}

    metrics = {}
    for mask, fill in fills.items():
        scores = fill.compare(fill.problem.truth)
        metrics[mask] = {"mask": describe_mask(mask)} | scores
        print_metrics(metrics[mask])
    print(EXPLANATION)

    from flowlib.plots.inpainting import plot_fills

    figure = plot_fills({describe_mask(mask): fill for mask, fill in fills.items()})
    file = figure_name("batch_inpainting_result.png", name)
    files.save_figure(figure, figures, file)
    return {"masks": metrics}


def cut_test_images(
    inpainter: Inpainter,
    images: Images,
    masks: list[str] | None,
    count: int,
    seed: int,
) -> dict[str, Problem]:
    """A problem for each kind of mask, in the first `count` test images.

    The kinds are by default squares of half the side, and noise:0.5. Raises UserError
    if there are fewer images.
    """
    masks = masks or [f"square:{images.shape[1] // 2}", "noise:0.5"]
    if count > len(images.test):
        raise UserError(f"--count {count}: only {len(images.test)} test images")
    grey = images.test[:count]
    seeds = range(seed, seed + count)
    truth = inpainter.truth(grey, seeds)

    problems = {}
    for kind in masks:
        if file := user_images.find_mask(kind, Path(kind)):
            mask = user_images.read_mask(file, images.shape).expand_as(grey)
        else:
            mask = draw_masks(kind, count, images.shape, seed)
        problems[kind] = Problem.cut(grey, mask, seeds, truth)
    return problems


def print_metrics(metrics: dict) -> None:
    """Prints a table of one kind of mask, a row for each way to fill it."""
    truth = metrics["truth_log_prob"]
    print(
        f"{metrics['mask']}, {metrics['images']} images: "
        f"log p of the truth {truth:,.0f} nats"
    )

    labels = {
        "map": "MAP estimate",
        "mean": "mean of fills",
        "medoid": "medoid of fills",
        "fill": "one fill",
    }
    for name, label in labels.items():
        line = "  {label:16} hole PSNR {hole_psnr:5.1f} dB   ink {ink_ratio:.2f}"
        if "log_prob" in metrics[name]:
            line += "   log p {log_prob:,.0f} nats"
            line += "   likelier than the truth {likelier_than_truth:.0%}"
        print(line.format(label=label, **metrics[name]))

    covered = [f"{c:.0%}: {metrics[f'coverage_{100 * c:.0f}']:.1%}" for c in COVERAGES]
    print(f"  pixels inside the fills' intervals: {', '.join(covered)}")
    print(f"  CRPS {metrics['crps']:.4f}")


# ---------------------------------------------------------------- pictures


def fill_pictures(
    inpainter: Inpainter,
    paths: list[Path],
    mask: str,
    seed: int,
    group: Processes,
    output: Path,
    **reading,
) -> dict:
    """Fills your pictures, and writes what is listed on top of this file to `output`.

    `reading` are options of `user_images.read_picture`. Returns the content of
    results.json.
    """
    glow = inpainter.glow
    named = name_pictures(paths, output, inpainter.settings.fills)
    seeds = range(seed, seed + len(named))

    # Each picture has a mask file of its own, or a mask that is drawn for it.
    pictures = {}
    for one, (name, path) in zip(seeds, named.items()):
        file = user_images.find_mask(mask, path)
        missing = file or draw_masks(mask, 1, glow.shape, one)[0]

        picture = user_images.read_picture(
            path,
            missing,
            glow.shape,
            glow.levels,
            **reading,
        )

        share = f"{picture.mask.sum()} of {picture.mask.numel()} pixels missing"
        print("; ".join([f"{name}: {share}", *picture.notes]))
        pictures[name] = picture

    images = torch.stack([picture.image for picture in pictures.values()])
    masks = torch.stack([picture.mask for picture in pictures.values()])
    problem = Problem.cut(images, masks, seeds)

    files.require_writable(output)
    with files.lock(output / "results.json", group.first):
        fill = fill_together(group, inpainter, problem, "your pictures")
        if not group.first:
            return {}

        rows = {
            name: write_picture(name, picture, fill[[i]], output)
            for i, (name, picture) in enumerate(pictures.items())
        }
        files.write_json(output / "results.json", rows)

    print(EXPLANATION)
    print(f"wrote {output / 'results.json'}")
    return {"pictures": rows}


def name_pictures(paths: list[Path], output: Path, fills: int) -> dict[str, Path]:
    """What each picture's results are called; UserError if they would overwrite one."""
    paths = user_images.find_pictures(paths)
    if output.resolve() in {path.parent.resolve() for path in paths}:
        raise UserError(
            f"--output {output} is a picture's folder: results need another one"
        )

    names = [files.readable(path.stem) for path in paths]
    results = [result for name in names for result in result_names(name, fills)]
    if twice := [name for name in results if results.count(name) > 1]:
        raise UserError(
            f"two results would be called {twice[0]}: rename one of the pictures"
        )
    return dict(zip(names, paths))


def result_names(name: str, fills: int) -> list[str]:
    """The files that are written of a picture, in the order of `write_picture`."""
    endings = ["", "_filled", "_mean", "_map", "_uncertainty"]
    endings += [f"_fill_{k}" for k in range(1, fills + 1)]
    return [f"{name}{ending}.png" for ending in endings]


def write_picture(name: str, picture: Picture, fill: Fill, output: Path) -> dict:
    """Writes one picture's results; returns its entry of results.json.

    The fill is that of this one picture.
    """
    from flowlib.plots.inpainting import plot_fills

    notes = list(picture.notes)
    typical = fill.typical.item()
    if typical < UNFAMILIAR:
        notes.append(
            f"log p is {-typical:.0f} standard deviations below that of training "
            "images: the model knows no such pictures"
        )
        print(f"{name}: {notes[-1]}")

    plausible = fill.grey(fill.plausible)[0]
    low, high = fill.interval(0.9)
    width = high - low
    overview, filled, *others = result_names(name, len(plausible))
    words = textwrap.fill("; ".join(notes), 110)
    files.save_figure(plot_fills({name: fill}, words), output, overview)
    medoid = plausible[fill.medoid()[0]]
    user_images.save_picture(output / filled, picture.restore(medoid))
    shown = [fill.mean()[0], fill.grey(fill.map)[0], width[0], *plausible]
    for file, image in zip(others, shown):
        user_images.save_grey(output / file, image)

    digits = fill.describe_digits(0) or "unknown (no classifier of such pictures)"
    print(f"{name}: digits among the fills {digits}")
    row = {"notes": notes, "missing_pixels": int(picture.mask.sum())}
    uncertainty = width[fill.problem.mask].mean().item()
    return row | fill.numbers(0) | {"mean_uncertainty": uncertainty}


# ---------------------------------------------------------------- the command line


def add_picture_flags(parser: Parser) -> None:
    """Adds the flags that decide which pictures are filled, and how they are read."""
    add = parser.add_argument_group("your pictures").add_argument
    add(
        "--image",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="your pictures, or folders of them, in place of test images",
    )

    add(
        "--ink",
        choices=user_images.INKS,
        default="auto",
        help="ink of your pictures; auto: the rarer tone",
    )

    add(
        "--no-crop",
        action="store_true",
        help="show the model all of each picture, not the part around ink and mask",
    )

    add(
        "--mask-polarity",
        choices=user_images.POLARITIES,
        default="auto",
        help="what marks missing pixels in a mask file; auto: white if it is rarer",
    )

    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=Path("filled"),
        help="folder for the results of --image",
    )


def add_hole_flags(parser: Parser) -> None:
    """Adds the flags that decide what is missing, and how much work goes into it."""
    add = parser.add_argument_group("holes and their filling").add_argument
    add(
        "--mask",
        nargs="+",
        metavar="MASK",
        help="what is missing; by default squares of half the side, and noise:0.5",
    )

    add(
        "--map-steps",
        type=number(int, 0, 100_000),
        default=40,
        help="steps of the ascent to the MAP estimate",
    )

    add(
        "--fills",
        type=number(int, 1, 100_000),
        default=12,
        help="plausible fills of each image",
    )

    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="precision of the networks; auto: bf16 where it is native",
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's flags."""
    parser = Parser(__doc__)
    data = parser.add_argument_group("data")
    add_dataset_flags(data)
    data.add_argument(
        "--count",
        type=number(int, 1, 100_000),
        default=4,
        help="test images for each kind of mask",
    )
    add_picture_flags(parser)
    add_hole_flags(parser)
    parser.add_common_flags("the Glow to fill with, by default that of the data set")

    args = parser.parse_args(argv)
    if not args.image:
        own = ("mask_polarity", "ink", "no_crop", "output")
        parser.refuse(args, "without --image", *own)
        return args

    parser.refuse(args, "with --image", "count", "figures")
    if len(args.mask or []) != 1:
        parser.error("--image needs one --mask, such as square:14 or a picture")
    return args


@one_line_errors()
@threads()
def main(argv: list[str] | None = None) -> None:
    """Fills holes in test images, or in the pictures of --image."""
    args = parse_args(argv)
    start = time.perf_counter()
    with processes(args.device) as group:
        # The model of the data, and images that are like them.
        images = None
        if not args.image:
            images = load_together(group, args.dataset, args.data_dir)

        name = images.name if images else data_name(args.dataset)
        glow = choose_glow(args.checkpoint, name, group.device, images)
        glow.set_precision(precision_for(args.precision, group.device))

        if images:
            references = images.train
        else:
            references = find_references(glow, args.data_dir, args.seed)
        settings = FillSettings(args.map_steps, args.fills)
        inpainter = Inpainter(glow, references, find_classifier(glow), settings)

        files.require_writable(files=[args.metrics])
        if images:
            problems = cut_test_images(
                inpainter,
                images,
                args.mask,
                args.count,
                args.seed,
            )
            metrics = fill_test_images(inpainter, problems, group, args.figures, name)

        else:
            metrics = fill_pictures(
                inpainter,
                args.image,
                args.mask[0],
                args.seed,
                group,
                args.output,
                ink=args.ink,
                polarity=args.mask_polarity,
                crop=not args.no_crop,
            )

    if group.first and args.metrics:
        files.write_metrics(
            args.metrics,
            {"data": glow.metrics.get("data")} | metrics,
            seconds=time.perf_counter() - start,
            device=group.device,
            seed=args.seed,
        )


if __name__ == "__main__":
    main()
