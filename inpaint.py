"""Fills holes in images with a trained Glow, without training anything for the task.

    python inpaint.py

cuts squares and random noise out of test images and answers two questions. Which missing pixels maximise the likelihood of the whole
image, argmax over δ of log p(x_known + δ · M), M = 1 where a pixel is missing (MAP)? And what could be there: samples of the posterior
p(missing | known), their mean, and how sure they are. The model's weights and the known pixels stay as they are.

What to expect: the likeliest fill of a square is *black*, and it is likelier than the truth. The maximum of a density is not a typical
draw from it: a plain background beats any particular stroke. The samples are what a person would draw.

    python inpaint.py --image photo.png --mask mask.png    fills a picture of your own; white in the mask is missing
    python inpaint.py --image folder/ --mask square:14     or many pictures, with any of the masks below
    python inpaint.py --mask top noise:0.9                 other holes in the test images
    python inpaint.py --source samples                     holes in the flow's own samples: is it calibrated where it is right?
    torchrun --nproc-per-node 2 inpaint.py                 shares the images among processes

A mask is square:SIDE, noise:FRACTION, top, bottom, left, right or a picture of the image's size. It is *missing* where the mask is set.

Reads    checkpoints/glow_mnist.pt and MNIST's images (or, where MNIST cannot be had, the digits' checkpoint and images); with --image
         and --source samples no data set is needed
Writes   figures/batch_inpainting_result.png; with --image instead, in filled/: NAME.png (all at one glance), NAME_mean.png,
         NAME_map.png, NAME_sample_1.png ..., NAME_uncertainty.png and results.json with every number
Takes    about two minutes on 2 CPU cores; under half a minute for a picture of your own
"""

import json
import math
import time
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from flowlib.cli import Parser, number, one_line_errors
from flowlib.distributed import Processes, processes
from flowlib.files import UserError, require_writable, save_figure, write_atomically, write_metrics
from flowlib.images.classifier import Classifier, default_classifier, load_classifier
from flowlib.images.datasets import TITLES, add_dataset_flags, load_images
from flowlib.images.glow import PRECISIONS, Glow, default_checkpoint, load_glow, precision_for, quantise
from flowlib.images.user_images import INKS, POLARITIES, Picture, find_pictures, read_picture, save_grey
from flowlib.inpainting.inpainter import POSTERIOR, STARTS, dequantised, flow_bank, flow_truth, map_fill, posterior_fill, typical_log_prob
from flowlib.inpainting.masks import describe_mask, make_masks
from flowlib.inpainting.scores import CONVERGED, evaluate, print_figures, ranks, warn
from flowlib.plots.inpainting import digits_in_words, inpainting_figure

# ---------------------------------------------------------------- data


def masks_for(spec: str, n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """n masks of a kind, always the same for the same seed. Raises UserError if the kind cannot be understood or does not fit."""
    try:
        return make_masks(spec, n, *shape[1:], torch.Generator().manual_seed(crc32(spec.encode()) % 2**31 + seed))
    except ValueError as error:
        raise UserError(str(error)) from None


# ---------------------------------------------------------------- fill


def fill(
    glow: Glow,
    bank: Tensor,
    masked: Tensor,
    mask: Tensor,
    seeds: list[int],
    *,
    typical: tuple[float, float],
    judge: Classifier | None,
    starts: list[str],
    steps: int,
    stop_at_typical: bool = False,
    known: Tensor | None = None,
    **sampler: int,
) -> dict[str, Tensor]:
    """MAP and posterior of each image, see `map_fill` and `posterior_fill`; what is missing has been set to 0 in `masked`.

    Adds to theirs: `atypical` (B,), whether MAP is likelier than three standard deviations above the mean of typical images, `typical`
    being both; `median`, `low` and `high` (B, 1, H, W), the samples' 50, 5 and 95 % quantiles in grey levels; and with a classifier as
    the judge `digits` (B, 10), p(digit | known), the share of the samples that are each digit.
    """
    mean, std = typical
    stop_at = mean if stop_at_typical else math.inf
    found = map_fill(glow, bank, masked, mask, seeds, starts=starts, steps=steps, stop_at=stop_at)
    found |= posterior_fill(glow, bank, masked, mask, seeds, known=known, **sampler)
    found |= {"mask": mask, "masked": masked, "atypical": found["map_log_prob"] > mean + 3 * std}
    grey = found["samples"].float()
    found |= {name: grey.quantile(q, dim=1) for name, q in (("low", 0.05), ("median", 0.5), ("high", 0.95))}
    if judge:
        device = next(glow.parameters()).device
        found["digits"] = torch.stack([judge.classify(samples.to(device)).mean(0).cpu() for samples in found["samples"]])
    return found


def references(glow: Glow, bank: Tensor) -> dict:
    """What `fill` compares with: the typical log p of the bank's images, and the classifier of such images, if there is one."""
    file, device = default_classifier(glow.metrics.get("data", "")), next(glow.parameters()).device
    return {"typical": typical_log_prob(glow, bank), "judge": load_classifier(file, device) if file.is_file() else None}


def fill_options(args) -> dict:
    """The flags that `fill` takes."""
    return {name: getattr(args, name) for name in ("starts", "steps", "stop_at_typical", "runs", "particles")}


def with_truth(found: dict[str, Tensor], glow: Glow, truth: Tensor, seeds: list[int], v: Tensor | None = None) -> dict[str, Tensor]:
    """Adds the truth, its log-density, and its ranks among the samples: those of `v` in (0, 1), or of the truth dequantised."""
    device = next(glow.parameters()).device
    v = dequantised(glow, truth, seeds).cpu() if v is None else v
    with torch.no_grad():
        log_prob = torch.cat([glow.log_prob(part.to(device)) for part in v.split(100)]).cpu()
    return found | {
        "truth": truth,
        "truth_log_prob": log_prob,
        "rank": ranks(found["v"].transpose(0, 1), v, torch.Generator().manual_seed(0)),
    }


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    parser.add_argument(
        "--image", type=Path, nargs="+", metavar="PATH", help="pictures of your own, or folders of them, instead of test images"
    )
    parser.add_argument(
        "--mask", nargs="+", metavar="MASK", help="what is missing (default: squares of half the image's side, and noise:0.5)"
    )
    parser.add_argument(
        "--mask-polarity",
        choices=POLARITIES,
        default="auto",
        help="the colour that is missing in a mask file; auto: white, or the rarer one",
    )
    parser.add_argument("--ink", choices=INKS, default="auto", help="of your pictures: the model knows light ink on dark; auto: the rarer")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("filled"), help="for --image (default filled/ where you are)")
    parser.add_argument("--source", choices=("test", "samples"), default="test", help="whose holes: test images, or the flow's own samples")
    parser.add_argument("--count", type=number(int, 1), default=7, help="images per mask; the figure shows up to 8 (default %(default)s)")
    parser.add_argument(
        "--starts", nargs="+", choices=STARTS, default=list(STARTS), help="fills to climb from; the likeliest result is MAP (default: all)"
    )
    parser.add_argument("--steps", type=number(int, 0), default=200, help="of the ascent (default %(default)s)")
    parser.add_argument("--stop-at-typical", action="store_true", help="climb no further than the mean log p of training images")
    for name, what in (("runs", "independent runs of the sampler"), ("particles", "per run")):
        parser.add_argument(f"--{name}", type=number(int, 1), default=POSTERIOR[name], help=f"{what} (default %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the networks; auto: bf16 where the processor has it")
    parser.add_common_flags(checkpoint="the Glow to fill with (default checkpoints/glow_DATASET.pt)")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    with processes(args.device) as group:
        args.device = group.device
        if args.image:
            fill_pictures(args)
        else:
            fill_data_set(args, group)


def fill_data_set(args, group: Processes) -> None:
    """Cuts holes into test images or samples, fills them, prints and draws the results."""
    start = time.perf_counter()
    images = load_images(args.dataset, args.data_dir) if args.source == "test" else None
    name = images.name if images else ("mnist" if args.dataset == "auto" else args.dataset)
    glow = load_glow(args.checkpoint or default_checkpoint(name), args.device, images and images.shape, images and images.levels)
    glow.set_precision(precision_for(args.precision, args.device))
    require_writable(args.figures)
    if args.count < group.count:
        raise UserError(f"--count {args.count} images cannot be shared by {group.count} processes")
    part = torch.arange(args.count).tensor_split(group.count)[group.rank]
    seeds = (part + args.seed).tolist()
    if images:
        bank, truth, v = images.train, images.test[: args.count][part], None
    else:
        bank = flow_bank(glow, 2000, args.seed)
        v = flow_truth(glow, args.count, args.seed)[part]
        truth = quantise(v, glow.levels)
    specs = args.mask or [f"square:{glow.shape[1] // 2}", "noise:0.5"]
    masks = {spec: masks_for(spec, args.count, glow.shape, args.seed)[part] for spec in specs}
    results, options = {}, references(glow, bank) | fill_options(args)
    for spec, mask in masks.items():
        known = None if v is None else torch.where(mask, 0.5, v)
        found = fill(glow, bank, torch.where(mask, 0, truth), mask, seeds, known=known, **options)
        found = with_truth(found, glow, truth, seeds, v)
        del found["v"]
        results[describe_mask(spec)] = group.gather(found)
    if not group.first:
        return
    figures = {kind: evaluate(result, glow.levels, args.starts) for kind, result in results.items()}
    for kind, result in results.items():
        print_figures(kind, figures[kind])
        warn(kind, result["r_hat"])
    whose = f"on {TITLES[name]}" if images else f"in the samples of a Glow for {TITLES[name]}"
    title = (
        f"Zero-shot inpainting {whose}. Orange: missing. Below MAP: its log p above the truth's, nats; below the mean: which digit it is"
    )
    save_figure(inpainting_figure(results, glow.levels, title), args.figures, "batch_inpainting_result.png")
    if args.metrics:
        metrics = {
            "data": name,
            "source": args.source,
            "masks": {spec: {"mask": kind} | figures[kind] for spec, kind in zip(specs, results)},
        }
        write_metrics(args.metrics, metrics, seconds=time.perf_counter() - start, device=args.device, seed=args.seed)


def fill_pictures(args) -> None:
    """Fills the user's own pictures and writes a folder of results."""
    start = time.perf_counter()
    name = "mnist" if args.dataset == "auto" else args.dataset
    glow = load_glow(args.checkpoint or default_checkpoint(name), args.device)
    glow.set_precision(precision_for(args.precision, args.device))
    paths = find_pictures(args.image)
    if not args.mask or len(args.mask) > 1:
        raise UserError("--image needs one --mask: a picture of the same size, or square:14, noise:0.5, top, bottom, left or right")
    pictures = [read_own(path, args.mask[0], glow, args, seed) for seed, path in enumerate(paths, args.seed)]
    require_writable(args.output)
    for picture in pictures:
        print(
            f"{picture.name}: {int(picture.mask.sum())} of {picture.mask.numel()} pixels missing" + "".join(f"; {n}" for n in picture.notes)
        )
    bank = bank_for(name, glow, args)
    image, mask = (torch.stack([getattr(picture, part) for picture in pictures]) for part in ("image", "mask"))
    seeds = list(range(args.seed, args.seed + len(pictures)))
    found = fill(glow, bank, torch.where(mask, 0, image), mask, seeds, **references(glow, bank), **fill_options(args))
    rows = {}
    for i, picture in enumerate(pictures):
        rows[picture.name] = write_fill(picture, {key: value[i : i + 1] for key, value in found.items()}, glow.levels, args)
    warn("these pictures", found["r_hat"])
    write_atomically(args.output / "results.json", lambda file: file.write_text(json.dumps(rows, indent=1) + "\n"))
    print(f"wrote {args.output}/results.json and {', '.join(f'{picture.name}.png' for picture in pictures)}")
    if args.metrics:
        write_metrics(args.metrics, {"pictures": rows}, seconds=time.perf_counter() - start, device=args.device, seed=args.seed)


def read_own(path: Path, mask: str, glow: Glow, args, seed: int) -> Picture:
    """One picture and its mask: a file, the file of the picture's name in a folder, or one of the named kinds."""
    file = Path(mask)
    if file.is_dir():
        matches = [match for match in sorted(file.iterdir()) if match.stem == path.stem]
        if not matches:
            raise UserError(f"no mask for {path.name} in the folder {file}: it must be called {path.stem}.png or the like")
        file = matches[0]
    named = file if file.is_file() or file.suffix else masks_for(mask, 1, glow.shape, seed)[0]
    return read_picture(path, named, glow.shape, glow.levels, ink=args.ink, polarity=args.mask_polarity)


def bank_for(name: str, glow: Glow, args) -> Tensor:
    """Images to find neighbours in: the training images where they lie, otherwise 2,000 samples of the flow."""
    try:
        images = load_images(name, args.data_dir, download=False)
        if images.shape == glow.shape and images.levels == glow.levels:
            return images.train
    except UserError:
        pass
    return flow_bank(glow, 2000, args.seed)


def write_fill(picture: Picture, found: dict[str, Tensor], levels: int, args, samples: int = 8) -> dict:
    """Writes one picture's results; its numbers, for results.json."""
    top, folder = levels - 1, args.output
    drawn = found["samples"][0, :samples] / top
    mean, width = found["samples"][0].float().mean(0) / top, (found["high"][0] - found["low"][0]) / top
    for ending, image in {
        "mean": mean,
        "map": found["map"][0] / top,
        "uncertainty": width,
        **{f"sample_{i + 1}": sample for i, sample in enumerate(drawn)},
    }.items():
        write_atomically(folder / f"{picture.name}_{ending}.png", lambda file, image=image: save_grey(file, image))
    title = "Orange: missing. Below MAP: its log p, nats; below the mean: which digit it is"
    save_figure(inpainting_figure({picture.name: found}, levels, title), folder, f"{picture.name}.png")
    missing = (found["log_prob"] - found["log_evidence"][:, None])[0]
    numbers = {
        key: round(found[key][0].item(), 4) for key in ("log_evidence", "map_log_prob", "acceptance", "ess", "r_hat", "temperatures")
    }
    numbers |= {"map_start": args.starts[int(found["map_start"][0])], "map_atypical": bool(found["atypical"][0])}
    numbers |= {"sample_log_prob": [round(value, 2) for value in found["log_prob"][0, :samples].tolist()]}
    numbers |= {"log_prob_missing_given_known": round(missing.mean().item(), 2), "missing_pixels": int(picture.mask.sum())}
    numbers |= {"converged": bool(found["r_hat"][0] < CONVERGED), "mean_uncertainty": round(width[picture.mask].mean().item(), 4)}
    if "digits" in found:
        numbers["digits"] = [round(value, 4) for value in found["digits"][0].tolist()]
        print(f"{picture.name}: {digits_in_words(found, 0, 0.05)}")
    return {"notes": picture.notes, **numbers}


if __name__ == "__main__":
    main()
