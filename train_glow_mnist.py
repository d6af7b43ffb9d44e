"""Trains a Glow on MNIST and draws samples from it.

    python train_glow_mnist.py

The loss is an upper bound on the bits per pixel that the model needs for a training
image. MNIST is read from data/, and downloaded if it is missing.

    python train_glow_mnist.py --dataset digits      8x8 digits, without a download
    python train_glow_mnist.py --dataset fashion     or kmnist, letters, balanced, or a folder of
                                                     pictures of one size, a sub-folder
                                                     each class
    python train_glow_mnist.py --evaluate            measures the checkpoint on the test images
    python train_glow_mnist.py --figure-only         redraws the figures from the checkpoint
    python train_glow_mnist.py --resume              continues a run that was killed or stopped
    torchrun --nproc-per-node 2 train_glow_mnist.py  trains with two processes: GPUs, or CPUs

Writes   checkpoints/glow_mnist.pt, figures/Gen.png, figures/glow_interpolation.png; of another
         data set checkpoints/glow_NAME.pt, figures/NAME_Gen.png and so on
Takes    39 minutes on one CPU core (AMD EPYC without AVX-512), half an hour on two, which
         OMP_NUM_THREADS=2 takes; ends at 1.054 bits/dim. More --steps lower it, and an
         NVIDIA H200 takes 25 times as many in that time
"""

import math
import time
from collections.abc import Iterator
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
from flowlib.images.glow import PRECISIONS, Glow, choose_glow, precision_for
from flowlib.inpainting.inpainter import Inpainter
from flowlib.muon import muon_and_adam
from flowlib.rng import rng
from flowlib.training import TrainingState

STEPS = 4_500
PATIENCE = 20  # non-finite steps in a row before training stops
EVERY = 250  # steps between two looks at the held-out images


@dataclass(frozen=True)
class Settings:
    """What the weights of a run depend on: the data, the model's size, and the training."""

    data: str = "mnist"
    blocks: int = 6
    hidden: int = 64
    depth: int = 1
    dequantizer: int = 32
    steps: int = STEPS
    batch: int = 32
    lr: float = 0.02
    precision: str = "auto"
    seed: int = 0


def default_steps(images: Images) -> int:
    """Two steps for every five training images, at most STEPS, since more would overfit.

    The number is rounded to hundreds. For the digits it is 500.
    """
    return min(STEPS, max(100, round(len(images.train) / 250) * 100))


def build_glow(images: Images, settings: Settings, device: torch.device) -> Glow:
    """A Glow for these images, its ActNorm layers set on 512 of them."""
    torch.manual_seed(settings.seed)
    size = (settings.blocks, settings.hidden, settings.depth)
    glow = Glow(images.shape, images.levels, *size, dequantizer=settings.dequantizer)
    glow.initialize(images.train[:512], rng(settings.seed, "initialize"))
    return glow.set_precision(precision_for(settings.precision, device)).to(device)


def train_glow(
    state: TrainingState,
    images: Tensor,
    settings: Settings,
    group: Processes | None = None,
) -> Iterator[dict]:
    """Minimizes the bits/dim from `state.step` to `settings.steps`; yields a record each step.

    Gradient norm clipped at 1; the learning rates rise for 100 steps, then fall as a
    cosine to zero. The processes of `group` share each batch. A record holds step, loss
    (bits/dim), lr, grad_norm and skipped, the number of steps without a finite loss and
    gradient. Those change nothing, but 20 in a row raise a UserError.
    """
    group = group or Processes(0, 1, next(state.model.parameters()).device)
    seed, in_a_row, batch = settings.seed, 0, images[: settings.batch]
    model = group.wrap(
        state.model, group.share(batch), group.share(torch.zeros(batch.shape))
    )
    for chosen in training.batches(len(images), settings.batch, seed, state.step):
        if state.step >= settings.steps:
            return
        cosine = (1 + math.cos(math.pi * state.step / settings.steps)) / 2
        share = min(1, (state.step + 1) / 100) * cosine
        state.step += 1
        batch = images[chosen]
        noise = torch.randn(batch.shape, generator=rng(seed, "noise", state.step))
        loss = model(group.share(batch), group.share(noise)).mean()
        state.model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0).item()
        loss = group.mean(loss.detach()).item()
        if math.isfinite(loss) and math.isfinite(norm):
            state.update(share)
            in_a_row = 0
        else:
            state.skipped, in_a_row = state.skipped + 1, in_a_row + 1
        if in_a_row == PATIENCE:
            problem = (
                f"the loss or its gradient was not finite {PATIENCE} times in a row"
            )
            raise UserError(f"{problem}, up to step {state.step}: try a lower --lr")
        record = {
            "step": state.step,
            "loss": loss,
            "lr": share * settings.lr,
            "grad_norm": norm,
        }
        yield record | {"skipped": state.skipped}


def fit_glow(
    state: TrainingState,
    images: Images,
    settings: Settings,
    group: Processes,
    resume_file: Path,
    max_minutes: float = math.inf,
    save_minutes: float = 5,
    curve_file: Path | None = None,
) -> bool:
    """Trains with a progress bar, a held-out curve and resume files; True if the run is complete.

    False: `max_minutes` are over. Ctrl-C and SIGTERM end the training after the step,
    and then the
    script. The resume file is written every `save_minutes` and at the end.
    """
    start = saved = time.monotonic()
    before, loss = state.seconds, state.curve[-1]["train"] if state.curve else math.nan
    total, done = settings.steps * settings.batch, state.step * settings.batch
    bar = tqdm(
        total=total, initial=done, unit="image", mininterval=1, disable=not group.first
    )
    with bar, training.stop_requests() as stop:
        for record in train_glow(state, images.train, settings, group):
            now = time.monotonic()
            state.seconds = before + now - start
            loss = (
                record["loss"]
                if math.isnan(loss)
                else 0.98 * loss + 0.02 * record["loss"]
            )
            bar.update(settings.batch)
            bar.set_postfix_str(
                f"{loss:.3f} bits/dim, {state.skipped} skipped", refresh=False
            )
            if group.first and (
                state.step % EVERY == 0 or state.step == settings.steps
            ):
                held_out, _ = measure_bits(
                    state.averaged, images.held_out[:1000], settings.seed
                )
                point = {"step": state.step, "seconds": round(state.seconds, 1)}
                point |= {"train": round(loss, 4), "held_out": round(held_out, 4)}
                tqdm.write(
                    "   ".join(f"{name} {value}" for name, value in point.items())
                )
                with training.goes_on():
                    training.extend_curve(state, point, curve_file)
            if group.any(stop.is_set() or now - start > 60 * max_minutes):
                break
            if group.first and now - saved > 60 * save_minutes:
                with training.goes_on():
                    training.save_resume(
                        state, resume_file, asdict(settings), images.made_from
                    )
                saved = now
        bar.close()
        complete = state.step >= settings.steps
        if group.first:
            with training.goes_on() if complete else nullcontext():
                training.save_resume(
                    state, resume_file, asdict(settings), images.made_from
                )
        if not complete:
            why = "stopped" if stop.is_set() else f"{max_minutes:g} minutes are over"
            where = f"step {state.step} of {settings.steps}"
            print(f"{why} at {where}: --resume continues {resume_file}")
    return complete


def run_training(
    images: Images, settings: Settings, group: Processes, checkpoint: Path, args
) -> Glow | None:
    """Trains, evaluates and saves a Glow. `args` are the flags of the command line.

    Returns the averaged model; None if the run is not complete, and in all processes
    but the first.
    """
    file = training.resume_path(checkpoint)
    if settings.batch % group.count:
        raise UserError(f"--batch must be a multiple of the {group.count} processes")
    glow = build_glow(images, settings, group.device)
    state = TrainingState(glow, muon_and_adam(glow, settings.lr))
    if args.compile:
        glow.compile_couplings()
    if args.resume:
        found = training.load_resume(state, file, asdict(settings), images.made_from)
        print(
            f"resuming from {file}"
            if found
            else f"no resume file at {file}: starting anew"
        )
        if len(set(group.gather(state.step))) > 1:
            raise UserError(f"{file} must be the same file on every machine")
    limits = (args.max_minutes, args.save_minutes)
    curve = args.metrics and args.metrics.with_suffix(".jsonl")
    if (
        not fit_glow(state, images, settings, group, file, *limits, curve)
        or not group.first
    ):
        return None
    glow = state.averaged
    metrics = evaluate_glow(glow, images, settings.seed) | asdict(settings)
    seconds, hardware = round(state.seconds, 1), files.hardware(group.device)
    metrics |= {"training_seconds": seconds, "hardware": hardware}
    metrics |= {
        "processes": group.count,
        "skipped": state.skipped,
        "curve": state.curve,
    }
    glow.metrics = metrics
    files.save_model(
        glow,
        checkpoint,
        step=state.step,
        seed=settings.seed,
        metrics=metrics,
        made_from=images.made_from,
    )
    return glow


@torch.no_grad()
def measure_bits(
    glow: Glow, images: Tensor, seed: int = 0, draws: int = 1
) -> tuple[float, float]:
    """Mean bits/dim over the images, and its standard error."""
    generator, device = rng(seed, "evaluate"), next(glow.parameters()).device
    parts = tqdm(
        images.split(250), desc="evaluating", leave=False, delay=5, disable=None
    )
    bits = torch.cat(
        [glow.bits_per_dim(part.to(device), draws, generator) for part in parts]
    )
    return bits.double().mean().item(), bits.double().std().item() / math.sqrt(
        len(bits)
    )


def evaluate_glow(glow: Glow, images: Images, seed: int = 0, draws: int = 1) -> dict:
    """A model's metrics, in float32; with `draws` > 1 also the importance-weighted bound."""
    glow.set_precision(torch.float32)
    bits, error = measure_bits(glow, images.test, seed)
    held_out, _ = measure_bits(glow, images.held_out, seed)
    metrics = {
        "data": images.source,
        "test_images": len(images.test),
        "test_bits_per_dim": bits,
    }
    metrics |= {"test_bits_per_dim_se": error, "held_out_bits_per_dim": held_out}
    metrics["parameters"] = sum(parameter.numel() for parameter in glow.parameters())
    metrics["held_out_log_prob"] = Inpainter(glow, images.train).measure_log_prob(
        images.held_out
    )
    if draws > 1:
        weighted, _ = measure_bits(glow, images.test, seed, draws)
        metrics |= {"draws": draws, "test_bits_per_dim_weighted": weighted}
    return metrics


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    parser.add_common_flags(
        "the weights to write or read (default checkpoints/glow_DATASET.pt)"
    )
    add = parser.add_argument
    add(
        "--evaluate", action="store_true", help="only measure the checkpoint's bits/dim"
    )
    add(
        "--draws",
        type=number(int, 1),
        help="of the noise, for --evaluate's weighted bound (16)",
    )
    add(
        "--figure-only",
        action="store_true",
        help="only redraw the figures from the checkpoint",
    )
    default = Settings()
    for name, text in (
        ("blocks", "Glow blocks per level"),
        ("hidden", "channels inside each coupling's network"),
        ("depth", "residual blocks in each coupling's network"),
        ("dequantizer", "channels of its network"),
        ("batch", "images per step, over all processes"),
        ("lr", "Muon's peak learning rate; a tenth is Adam's"),
    ):
        value = getattr(default, name)
        limits = Glow.LIMITS | {"batch": (2, 10_000), "lr": (1e-8, 10)}
        kind = number(type(value), *limits[name])
        add(f"--{name}", type=kind, default=value, help=f"{text} (%(default)s)")
    steps = f"training steps ({STEPS}; with few images two for five of them, or they overfit)"
    add("--steps", type=number(int, 1), help=steps)
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto: bf16 where it is native",
    )
    add(
        "--compile",
        action="store_true",
        help="a third faster on a GPU; needs a C compiler",
    )
    add("--resume", action="store_true", help="continue a stopped run")
    add(
        "--max-minutes",
        type=number(float, 0),
        default=math.inf,
        help="then stop, for --resume",
    )
    add(
        "--save-minutes",
        type=number(float, 0),
        default=5,
        help="between two resume files (5)",
    )
    args = parser.parse_args(argv)
    training = (
        "blocks",
        "hidden",
        "depth",
        "dequantizer",
        "batch",
        "lr",
        "steps",
        "precision",
    )
    training += ("compile", "resume", "max_minutes", "save_minutes")
    if args.evaluate:
        parser.refuse(args, "with --evaluate", *training, "figure_only", "figures")
    elif args.figure_only:
        parser.refuse(args, "with --figure-only", *training, "draws", "metrics")
    else:
        parser.refuse(args, "with training", "draws")
    return args


@one_line_errors()
@threads()
def main(argv=None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    with processes(args.device) as group:
        images = load_together(group, args.dataset, args.data_dir)
        if args.evaluate or args.figure_only:
            name, device = images.name, group.device
            glow = (
                choose_glow(args.checkpoint, name, device, images)
                if group.first
                else None
            )
        else:
            checkpoint = args.checkpoint or CHECKPOINTS / f"glow_{images.name}.pt"
            files.require_writable(args.figures, files=(checkpoint, args.metrics))
            given = {
                field.name: getattr(args, field.name, None)
                for field in fields(Settings)
            }
            steps = args.steps or default_steps(images)
            settings = Settings(**given | {"data": images.source, "steps": steps})
            with files.lock(checkpoint, group.first):
                glow = run_training(images, settings, group, checkpoint, args)
    if glow is None:  # the run is not complete, or this is not the first process
        return
    if args.evaluate:
        glow.metrics |= evaluate_glow(glow, images, args.seed, args.draws or 16)
    else:
        from flowlib.plots.glow import interpolation_figure, sample_figure

        samples = sample_figure(glow, images.train, args.seed)
        files.save_figure(samples, args.figures, figure_name("Gen.png", images.name))
        line = interpolation_figure(glow, images.test, args.seed)
        files.save_figure(
            line, args.figures, figure_name("glow_interpolation.png", images.name)
        )
    if not args.figure_only:
        line = "test {test_bits_per_dim:.4f} ± {test_bits_per_dim_se:.4f} bits/dim"
        if "draws" in glow.metrics:
            line += ", {test_bits_per_dim_weighted:.4f} with {draws} draws"
        line += "   {test_images:,} images   {parameters:,} parameters"
        print(line.format(**glow.metrics))
    if args.metrics:
        run = {
            "seconds": time.perf_counter() - start,
            "device": args.device,
            "seed": args.seed,
        }
        files.write_metrics(args.metrics, glow.metrics, **run)


if __name__ == "__main__":
    main()
