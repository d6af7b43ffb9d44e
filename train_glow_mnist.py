"""Trains a Glow on MNIST and draws samples from it.

    python train_glow_mnist.py

The loss is an upper bound on the bits per pixel that the model needs for a training
image. MNIST is read from data/, and downloaded if it is missing.

    python train_glow_mnist.py --dataset digits      8x8 digits, without a download
    python train_glow_mnist.py --dataset fashion     or kmnist, letters, balanced, or a
                                                     folder of pictures of one size, a
                                                     sub-folder for each class
    python train_glow_mnist.py --evaluate            measures a checkpoint's bits/dim
    python train_glow_mnist.py --figure-only         redraws a checkpoint's figures
    python train_glow_mnist.py --resume              continues a run that was stopped
    python train_glow_mnist.py --start FILE          goes on from a checkpoint's weights
    torchrun --nproc-per-node 2 train_glow_mnist.py  trains in two processes: GPUs, CPUs

Writes   checkpoints/glow_mnist.pt, figures/Gen.png, figures/glow_interpolation.png; of
         another data set checkpoints/glow_NAME.pt, figures/NAME_Gen.png and so on
Takes    39 minutes on one CPU core (AMD EPYC without AVX-512), half an hour on two,
         which OMP_NUM_THREADS=2 takes; ends at 1.054 bits/dim. More --steps lower it,
         and an NVIDIA H200 takes 25 times as many in that time
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from flowlib import files, training
from flowlib.cli import Parser, number, one_line_errors, threads
from flowlib.distributed import Processes, processes
from flowlib.files import CHECKPOINTS, UserError
from flowlib.images.datasets import (
    Images,
    add_dataset_flags,
    figure_name,
    load_together,
)
from flowlib.images.glow import PRECISIONS, Glow, choose_glow, load_glow, precision_for
from flowlib.inpainting.inpainter import Inpainter
from flowlib.muon import muon_and_adam
from flowlib.rng import rng
from flowlib.training import TrainingState

STEPS = 4_500
SHIFTED = 0.75  # of the steps; in the others all images are where they are
PATIENCE = 20  # non-finite steps in a row before training stops
EVERY = 250  # steps between two looks at the held-out images
SAVE_EVERY = 300  # seconds between two resume files


@dataclass(frozen=True)
class Settings:
    """What the weights of a run depend on: the data, the model's size, the training."""

    data: str = "mnist"
    blocks: int = 6
    hidden: int = 64
    depth: int = 1
    dequantizer: int = 32
    steps: int = STEPS
    batch: int = 32
    lr: float = 0.02
    shift: int = 0
    start: str = ""
    precision: str = "auto"
    seed: int = 0


# Those that are flags of training alone, and of them those that `start` decides.
FLAGS = [field.name for field in fields(Settings) if field.name not in ("data", "seed")]
SIZES = ("blocks", "hidden", "depth", "dequantizer")


def default_steps(images: Images) -> int:
    """Two steps for every five training images, at most STEPS, for more would overfit.

    The number is rounded to hundreds. For the digits it is 500.
    """
    return min(STEPS, max(100, round(len(images.train) / 250) * 100))


def build_glow(images: Images, settings: Settings, device: torch.device) -> Glow:
    """A Glow for these images.

    It has the weights of `settings.start`. Without that it is a new one, its ActNorm
    layers set on 512 of the images.
    """
    if settings.start:
        glow = load_glow(settings.start)
        if glow.shape != images.shape or glow.levels != images.levels:
            sides = "{}x{}".format(*glow.shape[1:])
            raise UserError(
                f"{settings.start} is for images of {sides} pixels "
                f"and {glow.levels} grey levels"
            )

    else:
        torch.manual_seed(settings.seed)
        sizes = {name: getattr(settings, name) for name in SIZES}
        glow = Glow(images.shape, images.levels, **sizes)
        glow.initialize(images.train[:512], rng(settings.seed, "initialize"))
    return glow.set_precision(precision_for(settings.precision, device)).to(device)


def shift_images(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image (B, 1, H, W) moved at random, by up to `most` pixels either way.

    New pixels at a side repeat the image's edge. The images differ from epoch to epoch,
    so they are harder to learn by heart.
    """
    count, _, height, width = images.shape
    down, right = torch.randint(-most, most + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    each = torch.arange(count)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None]].movedim(3, 1)


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rates after `step` of `steps` steps.

    It rises for 100 steps, then falls as a cosine to zero.
    """
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1, (step + 1) / 100) * cosine


def train_glow(
    state: TrainingState,
    images: Tensor,
    settings: Settings,
    group: Processes | None = None,
) -> Iterator[dict]:
    """Minimizes the bits/dim from `state.step` to `settings.steps`.

    The gradient's norm is clipped at 1. The processes of `group` share each batch.

    Yields a record each step: step, loss (bits/dim), mean_loss (over some 50 steps),
    lr, grad_norm and skipped, the count of steps without a finite loss and gradient.
    Those change nothing, but 20 in a row raise a UserError.
    """
    group = group or Processes(0, 1, next(state.model.parameters()).device)
    batch = group.share(images[: settings.batch])
    model = group.wrap(state.model, batch, torch.zeros_like(batch, dtype=torch.float))

    start = time.monotonic() - state.seconds
    mean_loss = state.curve[-1]["train"] if state.curve else math.nan
    in_a_row = 0
    seed = settings.seed
    order = training.batches(len(images), settings.batch, seed, state.step)
    while state.step < settings.steps:
        share = schedule(state.step, settings.steps)
        state.step += 1

        batch = images[next(order)]
        if settings.shift and state.step <= SHIFTED * settings.steps:
            batch = shift_images(batch, settings.shift, rng(seed, "shift", state.step))
        noise = torch.randn(batch.shape, generator=rng(seed, "noise", state.step))
        loss = model(group.share(batch), group.share(noise)).mean()
        state.model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0).item()
        loss = group.mean(loss.detach()).item()

        if math.isfinite(loss) and math.isfinite(norm):
            state.update(share)
            in_a_row = 0
            mean_loss = loss if math.isnan(mean_loss) else mean_loss
            mean_loss += 0.02 * (loss - mean_loss)
        else:
            state.skipped += 1
            in_a_row += 1
        if in_a_row == PATIENCE:
            raise UserError(
                f"the loss or its gradient was not finite {PATIENCE} times in a row, "
                f"up to step {state.step}: try a lower --lr"
            )

        state.seconds = time.monotonic() - start
        yield {
            "step": state.step,
            "loss": loss,
            "mean_loss": mean_loss,
            "lr": share * settings.lr,
            "grad_norm": norm,
            "skipped": state.skipped,
        }


def fit_glow(
    state: TrainingState,
    images: Images,
    settings: Settings,
    group: Processes,
    resume_file: Path,
    curve_file: Path | None = None,
) -> bool:
    """Trains with a progress bar, a held-out curve and resume files.

    Ctrl-C and SIGTERM end the training after the step, and then the script. The resume
    file is written every five minutes and at the end.

    Returns:
        Whether the run is complete: False if it was stopped.
    """

    def save() -> None:
        training.save_resume(state, resume_file, asdict(settings), images.made_from)

    last_save = time.monotonic()
    with training.stop_requests() as stop:
        records = train_glow(state, images.train, settings, group)
        for record in show_progress(records, state, settings, group):
            last = state.step == settings.steps
            if group.first and (last or state.step % EVERY == 0):
                mean_loss = record["mean_loss"]
                add_point(state, images, settings.seed, mean_loss, curve_file)

            if group.any(stop.is_set()):
                break
            if group.first and time.monotonic() - last_save >= SAVE_EVERY:
                with training.goes_on():
                    save()
                last_save = time.monotonic()

        # A complete run can do without a resume file, a stopped one cannot.
        complete = state.step >= settings.steps
        if group.first:
            with training.goes_on() if complete else nullcontext():
                save()
        if not complete:
            print(
                f"stopped at step {state.step} of {settings.steps}: "
                f"--resume continues {resume_file}"
            )
    return complete


def show_progress(
    records: Iterator[dict],
    state: TrainingState,
    settings: Settings,
    group: Processes,
) -> Iterator[dict]:
    """The records of `train_glow`, with a progress bar."""
    bar = tqdm(
        total=settings.steps,
        initial=state.step,
        unit="image",
        unit_scale=settings.batch,
        mininterval=1,
        disable=not group.first,
    )

    with bar:
        for record in records:
            text = "{mean_loss:.3f} bits/dim, {skipped} skipped".format(**record)
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            yield record


def add_point(
    state: TrainingState,
    images: Images,
    seed: int,
    mean_loss: float,
    curve_file: Path | None,
) -> None:
    """Adds the averaged model's bits/dim on 1,000 held-out images to the curve."""
    held_out, _ = measure_bits(state.averaged, images.held_out[:1000], seed)
    point = {
        "step": state.step,
        "seconds": round(state.seconds, 1),
        "train": round(mean_loss, 4),
        "held_out": round(held_out, 4),
    }
    tqdm.write("   ".join(f"{name} {value}" for name, value in point.items()))
    with training.goes_on():
        training.extend_curve(state, point, curve_file)


def run_training(
    images: Images,
    settings: Settings,
    group: Processes,
    checkpoint: Path,
    *,
    compiled: bool = False,
    resumed: bool = False,
    curve_file: Path | None = None,
) -> Glow | None:
    """Trains, evaluates and saves a Glow.

    Returns:
        The averaged model; None if the run was stopped, and in all processes but the
        first.
    Raises:
        UserError: if the processes cannot share a batch, or the resume file is of
            another run.
    """
    if settings.batch % group.count:
        raise UserError(f"--batch must be a multiple of the {group.count} processes")
    glow = build_glow(images, settings, group.device)
    earlier = glow.metrics if settings.start else None
    state = TrainingState(glow, muon_and_adam(glow, settings.lr))
    if compiled:
        glow.compile_couplings()

    file = training.resume_path(checkpoint)
    if resumed:
        found = training.load_resume(state, file, asdict(settings), images.made_from)
        missing = f"no resume file at {file}: starting anew"
        print(f"resuming from {file}" if found else missing)
        if len(set(group.gather(state.step))) > 1:
            raise UserError(f"{file} must be the same file on every machine")

    complete = fit_glow(state, images, settings, group, file, curve_file)
    if not (complete and group.first):
        return None

    glow = state.averaged
    run = {
        "training_seconds": round(state.seconds, 1),
        "hardware": files.hardware(group.device),
        "processes": group.count,
        "skipped": state.skipped,
        "curve": state.curve,
        "started_from": earlier,  # the metrics of the run that --start goes on from
    }
    glow.metrics = evaluate_glow(glow, images, settings.seed) | asdict(settings) | run

    files.save_model(
        glow,
        checkpoint,
        step=state.step,
        seed=settings.seed,
        metrics=glow.metrics,
        made_from=images.made_from,
    )
    return glow


@torch.no_grad()
def measure_bits(
    glow: Glow,
    images: Tensor,
    seed: int = 0,
    draws: int = 1,
) -> tuple[float, float]:
    """Mean bits/dim over the images, (N, 1, H, W), and its standard error."""
    generator = rng(seed, "evaluate")
    device = next(glow.parameters()).device
    parts = []
    for part in tqdm(
        images.split(250),
        desc="evaluating",
        leave=False,
        delay=5,
        disable=None,
    ):
        parts.append(glow.bits_per_dim(part.to(device), draws, generator))
    bits = torch.cat(parts).double()
    return bits.mean().item(), bits.std().item() / math.sqrt(len(bits))


def evaluate_glow(glow: Glow, images: Images, seed: int = 0, draws: int = 1) -> dict:
    """A model's metrics, in float32.

    With `draws` > 1 also the importance-weighted bound.
    """
    glow.set_precision(torch.float32)
    bits, error = measure_bits(glow, images.test, seed)
    held_out, _ = measure_bits(glow, images.held_out, seed)
    inpainter = Inpainter(glow, images.train)
    metrics = {
        "data": images.source,
        "test_images": len(images.test),
        "test_bits_per_dim": bits,
        "test_bits_per_dim_se": error,
        "held_out_bits_per_dim": held_out,
        "parameters": sum(parameter.numel() for parameter in glow.parameters()),
        "held_out_log_prob": inpainter.measure_log_prob(images.held_out),
    }

    if draws > 1:
        weighted, _ = measure_bits(glow, images.test, seed, draws)
        metrics |= {"draws": draws, "test_bits_per_dim_weighted": weighted}
    return metrics


def report_bits(metrics: dict) -> None:
    """Prints a model's bits/dim on the test images."""
    line = "test {test_bits_per_dim:.4f} ± {test_bits_per_dim_se:.4f} bits/dim"
    if "draws" in metrics:
        line += ", {test_bits_per_dim_weighted:.4f} with {draws} draws"
    line += "   {test_images:,} images   {parameters:,} parameters"
    print(line.format(**metrics))


def draw_figures(glow: Glow, images: Images, folder: Path, seed: int) -> None:
    """Writes the figures of a model."""
    from flowlib.plots.glow import interpolation_figure, sample_figure

    samples = sample_figure(glow, images.train, seed)
    files.save_figure(samples, folder, figure_name("Gen.png", images.name))
    paths = interpolation_figure(glow, images.test, seed)
    name = figure_name("glow_interpolation.png", images.name)
    files.save_figure(paths, folder, name)


def add_training_flags(parser: Parser) -> None:
    """Adds the flags that decide how a model is built and trained."""
    model = parser.add_argument_group("model")
    course = parser.add_argument_group("training")
    limits = Glow.LIMITS | {"batch": (2, 10_000), "lr": (1e-8, 10), "shift": (0, 64)}
    for section, name, text in (
        (model, "blocks", "Glow blocks per level"),
        (model, "hidden", "channels inside each coupling's network"),
        (model, "depth", "residual blocks in each coupling's network"),
        (model, "dequantizer", "channels inside the dequantizer's network"),
        (course, "batch", "images per step, over all processes"),
        (course, "lr", "Muon's peak learning rate; Adam's is a tenth of it"),
        (course, "shift", "pixels by which images are moved at random while training"),
    ):
        value = getattr(Settings, name)
        kind = number(type(value), *limits[name])
        section.add_argument(f"--{name}", type=kind, default=value, help=text)

    course.add_argument(
        "--steps",
        type=number(int, 1),
        help=f"training steps (default: {STEPS}, with few images fewer)",
    )

    course.add_argument(
        "--start",
        default=Settings.start,
        metavar="FILE",
        help="a checkpoint to go on from, with its sizes (default: a new model)",
    )

    course.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="what the networks compute in; auto takes bf16 where it is native",
    )

    course.add_argument(
        "--compile",
        action="store_true",
        help="compile the couplings: a third faster on a GPU; needs a C compiler",
    )

    course.add_argument(
        "--resume",
        action="store_true",
        help="continue a run that was killed or stopped",
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_dataset_flags(parser)

    mode = parser.add_argument_group("instead of training")
    mode.add_argument(
        "--evaluate",
        action="store_true",
        help="only measure the checkpoint's bits/dim",
    )

    mode.add_argument(
        "--draws",
        type=number(int, 1),
        help="draws of the noise for --evaluate's weighted bound (default: 16)",
    )

    mode.add_argument(
        "--figure-only",
        action="store_true",
        help="only redraw the figures from the checkpoint",
    )

    add_training_flags(parser)
    parser.add_common_flags(
        "the weights to write or read (default: checkpoints/glow_DATASET.pt)"
    )

    args = parser.parse_args(argv)
    of_training = [*FLAGS, "compile", "resume"]
    if args.evaluate:
        parser.refuse(args, "with --evaluate", *of_training, "figure_only", "figures")
    elif args.figure_only:
        parser.refuse(args, "with --figure-only", *of_training, "draws", "metrics")
    else:
        parser.refuse(args, "with training", "draws")
        if args.start:
            parser.refuse(args, "with --start", *SIZES)
    return args


def make_settings(args: argparse.Namespace, images: Images) -> Settings:
    """What the flags say of a run."""
    given = {name: getattr(args, name) for name in FLAGS}
    given["steps"] = args.steps or default_steps(images)
    if args.start:
        config = load_glow(args.start).config
        given |= {name: config[name] for name in SIZES}
    return Settings(data=images.source, seed=args.seed, **given)


@one_line_errors()
@threads()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()

    glow = None
    with processes(args.device) as group:
        images = load_together(group, args.dataset, args.data_dir)
        if not (args.evaluate or args.figure_only):
            checkpoint = args.checkpoint or CHECKPOINTS / f"glow_{images.name}.pt"
            files.require_writable(args.figures, files=[checkpoint, args.metrics])
            settings = make_settings(args, images)

            with files.lock(checkpoint, wanted=group.first):
                glow = run_training(
                    images,
                    settings,
                    group,
                    checkpoint,
                    compiled=args.compile,
                    resumed=args.resume,
                    curve_file=args.metrics and args.metrics.with_suffix(".jsonl"),
                )

        elif group.first:
            glow = choose_glow(args.checkpoint, images.name, group.device, images)

    if glow is None:  # the run was stopped, or this is not the first process
        return

    if args.evaluate:
        glow.metrics |= evaluate_glow(glow, images, args.seed, args.draws or 16)
    else:
        draw_figures(glow, images, args.figures, args.seed)

    if not args.figure_only:
        report_bits(glow.metrics)
    if args.metrics:
        files.write_metrics(
            args.metrics,
            glow.metrics,
            seconds=time.perf_counter() - start,
            device=args.device,
            seed=args.seed,
        )


if __name__ == "__main__":
    main()
