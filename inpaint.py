"""Fills holes in images with a trained Glow, which was never trained to do so.

    python inpaint.py

cuts holes out of test images and asks two questions. Which missing pixels maximize the
likelihood of the whole image, argmax over δ of log p(x_observed + δ · M), M = 1 where a
pixel is missing? This is the MAP estimate. What could be there? Twelve samples of the
missing pixels show it, with their mean and how much they differ. The model's weights
and the observed pixels stay as they are.

The MAP estimate of a square hole is often *black*, and it is likelier than the truth:
the maximum of a density is not a typical draw from it. The samples are what a person
would draw. Each lies near the training image that it started from, so the share of a
digit among them is a rough estimate.

    python inpaint.py --image photo.png --mask mask.png   your own picture; white is missing
    python inpaint.py --image folder/ --mask square:14    many pictures, any of the masks below
    python inpaint.py --mask top noise:0.9                other holes in the test images
    python inpaint.py --source samples                    holes in samples of the flow itself
    torchrun --nproc-per-node 2 inpaint.py                shares the images among processes

A mask is square:SIDE, noise:FRACTION, top, bottom, left, right, or a picture. MNIST is
needed for test images alone; where it cannot be had, scikit-learn's digits take its
place.

Writes   figures/batch_inpainting_result.png (of other data than MNIST its name comes first).
         With --image instead, in filled/: results.json, and of each picture NAME.png
         (all at one glance), NAME_filled.png (the picture itself, its hole filled with
         the likeliest sample), and NAME_mean.png and so on, as the model sees it
Takes    90 seconds on one CPU core (AMD EPYC without AVX-512)
"""

import textwrap
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from flowlib import files
from flowlib.cli import Parser, number, one_line_errors, threads
from flowlib.distributed import Processes, processes
from flowlib.files import UserError
from flowlib.images import user_images
from flowlib.images.classifier import load_classifier
from flowlib.images.datasets import (
    Images,
    add_dataset_flags,
    data_name,
    figure_name,
    load_images,
    load_together,
)
from flowlib.images.glow import PRECISIONS, Glow, choose_glow, precision_for
from flowlib.inpainting.fill import Fill, Problem, Truth
from flowlib.inpainting.inpainter import FillSettings, Inpainter
from flowlib.inpainting.masks import describe_mask, draw_masks
from flowlib.inpainting.scores import COVERAGES
from flowlib.rng import rng

SAMPLES = (
    2000  # of the flow, to serve as reference images where there are no training images
)
# What is written of each of one's own pictures: NAME_mean.png and so on.
RESULTS = ("_mean", "_map", "_uncertainty", *(f"_sample_{i}" for i in range(1, 9)))
# the picture itself, in its own size, with the likeliest sample in its hole
FILLED = "_filled"


def make_inpainter(
    args, name: str, images: Images | None, device: torch.device
) -> Inpainter:
    """The Glow that the flags or the data's name say, with reference images and a classifier."""
    glow = choose_glow(args.checkpoint, name, device, images)
    glow.set_precision(precision_for(args.precision, device))

    references = images.train if images else reference_images(glow, args)
    file = files.find_checkpoint(f"classifier_{glow.made_from.get('name')}.pt")
    classifier = load_classifier(file, device) if file.is_file() else None
    return Inpainter(
        glow, references, classifier, FillSettings(args.steps, args.chains)
    )


def reference_images(glow: Glow, args) -> Tensor:
    """The images that the Glow was trained on, if they are on this disk; otherwise its samples."""
    if args.source == "test":
        try:
            images = load_images(
                glow.metrics.get("data", ""), args.data_dir, download=False
            )
            if images.made_from == glow.made_from:
                return images.train
        except UserError:
            pass
        print("the training images are not here: samples of the flow take their place")
    return glow.quantize(glow.sample(SAMPLES, rng(args.seed, "reference images"))).cpu()


def make_problems(
    args, inpainter: Inpainter, images: Images | None
) -> dict[str, Problem]:
    """Holes in test images, or in samples of the flow: a problem for each kind of mask."""
    glow, count = inpainter.glow, args.count
    seeds, v = [args.seed + i for i in range(count)], None
    if images and count > len(images.test):
        raise UserError(
            f"--count {count}: there are only {len(images.test)} test images"
        )
    if images:
        grey = images.test[:count]
        truth = inpainter.truth(grey, seeds)
    else:
        v = glow.sample(count, rng(args.seed, "samples with holes")).cpu()
        grey = glow.quantize(v)
        truth = Truth(grey / (glow.levels - 1), v, inpainter.log_prob(v))
    problems = {}
    for kind in args.mask or [f"square:{glow.shape[1] // 2}", "noise:0.5"]:
        if file := user_images.find_mask(kind, Path(kind)):
            mask = user_images.read_mask(file, glow.shape).expand(count, -1, -1, -1)
        else:
            mask = draw_masks(kind, count, glow.shape, args.seed)
        problems[kind] = Problem.cut(grey, mask, seeds, truth, v)
    return problems


def read_pictures(args, glow: Glow) -> dict[str, Problem]:
    """One's own pictures with their holes, as one problem; each is described in a line."""
    paths = user_images.find_pictures(args.image)
    names = [files.readable(path.stem) for path in paths]
    if args.output.resolve() in {path.parent.resolve() for path in paths}:
        raise UserError(
            f"--output {args.output} is a picture's folder: results need another one"
        )
    results = [f"{name}{ending}" for name in names for ending in ("", FILLED, *RESULTS)]
    if twice := [name for name in results if results.count(name) > 1]:
        raise UserError(
            f"two results would be called {twice[0]}.png: rename one of the pictures"
        )
    if len(args.mask or []) != 1:
        raise UserError(
            "--image needs one --mask, such as square:14, noise:0.5, or a picture"
        )
    pictures, seeds = [], [args.seed + i for i in range(len(paths))]
    for path, name, seed in zip(paths, names, seeds):
        mask = user_images.find_mask(args.mask[0], path)
        hole = (
            draw_masks(args.mask[0], 1, glow.shape, seed)[0] if mask is None else mask
        )
        options = {
            "ink": args.ink,
            "polarity": args.mask_polarity,
            "crop": not args.no_crop,
        }
        picture = user_images.read_picture(
            path, hole, glow.shape, glow.levels, **options
        )
        missing = f"{int(picture.mask.sum())} of {picture.mask.numel()} pixels missing"
        print("; ".join([f"{name}: {missing}", *picture.notes]))
        pictures.append(picture)
    image, mask = (
        torch.stack([getattr(p, part) for p in pictures]) for part in ("image", "mask")
    )
    problem = Problem.cut(image, mask, seeds, names=names, pictures=pictures)
    return {"your pictures": problem}


def fill_holes(
    inpainter: Inpainter, problem: Problem, kind: str, group: Processes
) -> Fill:
    """Fills a problem's images, shared among the processes, with a progress bar."""
    rows = torch.arange(len(problem)).tensor_split(group.count)[group.rank].tolist()
    work = len(rows) * inpainter.settings.work()
    look = {
        "desc": kind,
        "bar_format": "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    }
    with tqdm(total=work, mininterval=0.5, disable=not group.first, **look) as bar:
        fill = inpainter.fill(problem[rows], bar.update) if rows else None
    return Fill.cat([part for part in group.gather(fill) if part is not None])


def report_tests(
    problems: dict[str, Problem], fills: dict[str, Fill], name: str, args
) -> dict:
    """Prints a table for each kind of hole, draws the figure, and returns the metrics.

    `name` is the data's.
    """
    from flowlib.plots.inpainting import plot_fills

    metrics, results = {}, {}
    for kind, fill in fills.items():
        words, truth = describe_mask(kind), problems[kind].truth
        results[words] = problems[kind], fill
        metrics[kind] = {"mask": words} | fill.compare(truth)
        print(
            f"{words}, {len(fill)} images: log p of the truth {truth.log_prob.mean():,.0f} nats"
        )
        print_table(metrics[kind])
        print_chains(fill)
    title = "Orange: missing. Below: log p minus the truth's, the digit, how far the chains moved."
    file = figure_name("batch_inpainting_result.png", name)
    files.save_figure(plot_fills(results, title), args.figures, file)
    return {"source": args.source, "masks": metrics}


def print_table(metrics: dict) -> None:
    """Prints the metrics of one kind of hole, a row for each way to fill it."""
    rows = {"mean of the samples": "mean", "one sample": "sample"}
    for label, name in ({"MAP estimate": "map"} | rows).items():
        line = "  {label:20} hole PSNR {hole_psnr:5.1f} dB   ink {ink_ratio:.2f}"
        if "log_prob" in metrics[name]:
            line += "   log p {log_prob:,.0f}   likelier than the truth {likelier_than_truth:.0%}"
        print(line.format(label=label, **metrics[name]))
    covered = ", ".join(
        f"{c:.0%}: {metrics[f'coverage_{100 * c:.0f}']:.1%}" for c in COVERAGES
    )
    print(
        f"  missing pixels inside the samples' intervals, {covered}; CRPS {metrics['crps']:.4f}"
    )


def print_chains(fill: Fill) -> None:
    """Prints how the chains fared."""
    far = f"travelled {fill.travelled.median():.3f}, 1 would be as far as two fills are apart"
    print(f"  accepted moves {fill.acceptance.mean():.0%}; {far}")
    print(
        "  Each fill is near the similar image that it came from. How it looks is the flow's,"
    )
    print("  how many of the fills are a 4, say, is the similar images'.")


def report_pictures(problems: dict[str, Problem], fills: dict[str, Fill], args) -> dict:
    """Writes the filled pictures and results.json, and returns what is in it."""
    from flowlib.plots.inpainting import plot_fills

    ((problem, fill),) = zip(problems.values(), fills.values())
    low, high = fill.interval(0.9)
    mean, best, samples = fill.mean(), fill.grey(fill.map), fill.grey(fill.samples)
    title = (
        "Orange: missing. Below: log p in nats, which digit, how far the chains moved."
    )
    rows = {}
    for i, name in enumerate(problem.names):
        picture = problem.pictures[i]
        typical = fill.typical[i].item()
        if typical < -4:
            far = f"log p is {-typical:.0f} standard deviations below that of training images"
            picture.notes.append(f"{far}: the model knows no such pictures")
            print(f"{name}: {picture.notes[-1]}")
        words = textwrap.fill("; ".join(picture.notes), 110)
        figure = plot_fills({name: (problem[[i]], fill[[i]])}, f"{words}\n{title}")
        files.save_figure(figure, args.output, f"{name}.png")

        likeliest = samples[i, fill.log_prob[i].argmax()]
        whole = picture.restore(likeliest)
        user_images.save_picture(args.output / f"{name}{FILLED}.png", whole)
        results = [mean[i], best[i], (high - low)[i], *samples[i]]
        for ending, image in zip(RESULTS, results):
            user_images.save_grey(args.output / f"{name}{ending}.png", image)

        width = (high - low)[i][problem.mask[i]].mean().item()
        rows[name] = {
            "notes": picture.notes,
            "missing_pixels": int(problem.mask[i].sum()),
        }
        rows[name] |= fill.numbers(i) | {"mean_uncertainty": width}
        digits = (
            fill.describe_digits(i, halves=True)
            or "unknown (no classifier of such pictures)"
        )
        print(f"{name}: digits among the samples {digits}")
    print_chains(fill)
    files.write_json(args.output / "results.json", rows)
    print(f"wrote {args.output / 'results.json'}")
    return {"pictures": rows}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, whole = parser.add_argument, number(int, 1, 100_000)
    add_dataset_flags(parser)
    add(
        "--image",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="your pictures, or folders of them",
    )
    add(
        "--mask",
        nargs="+",
        metavar="MASK",
        help="(squares of half the side, and noise:0.5)",
    )
    polarities, inks = user_images.POLARITIES, user_images.INKS
    add(
        "--mask-polarity",
        choices=polarities,
        default="auto",
        help="what is missing; auto: white",
    )
    add("--ink", choices=inks, default="auto", help="of your pictures; auto: the rarer")
    add("--no-crop", action="store_true", help="show the model your whole pictures")
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=Path("filled"),
        help="of --image (filled)",
    )
    add(
        "--source",
        choices=("test", "samples"),
        default="test",
        help="holes in what (test images)",
    )
    add("--count", type=whole, default=4, help="images for each mask (4)")
    add(
        "--steps",
        type=number(int, 0, 100_000),
        default=40,
        help="of the MAP ascent (40)",
    )
    add("--chains", type=whole, default=12, help="each gives one sample (12)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto: bf16 where it is native",
    )
    parser.add_common_flags(
        checkpoint="the Glow to fill with (checkpoints/glow_DATASET.pt)"
    )
    args = parser.parse_args(argv)
    if args.image:
        parser.refuse(args, "with --image", "source", "count", "figures")
    else:
        parser.refuse(
            args, "without --image", "mask_polarity", "ink", "no_crop", "output"
        )
    return args


@one_line_errors()
@threads()
def main(argv=None) -> None:
    args, start = parse_args(argv), time.perf_counter()
    with processes(args.device) as group:
        from_data = args.source == "test" and not args.image
        images = (
            load_together(group, args.dataset, args.data_dir) if from_data else None
        )
        name = images.name if images else data_name(args.dataset)
        inpainter = make_inpainter(args, name, images, group.device)
        if args.image:
            problems = read_pictures(args, inpainter.glow)
        else:
            problems = make_problems(args, inpainter, images)
        folder = args.output if args.image else args.figures
        files.require_writable(folder, files=[args.metrics])
        with files.lock(
            folder / "results.json", group.first and args.image is not None
        ):
            fills = {
                kind: fill_holes(inpainter, problems[kind], kind, group)
                for kind in problems
            }
            if group.first:
                if args.image:
                    metrics = report_pictures(problems, fills, args)
                else:
                    metrics = report_tests(problems, fills, name, args)
                metrics = {"data": inpainter.glow.metrics.get("data")} | metrics
    if group.first and args.metrics:
        run = {"seconds": time.perf_counter() - start, "device": group.device}
        files.write_metrics(args.metrics, metrics, seed=args.seed, **run)


if __name__ == "__main__":
    main()
