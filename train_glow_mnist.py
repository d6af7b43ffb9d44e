"""Trains a Glow on MNIST and draws samples from it.

    python train_glow_mnist.py

trains by maximum likelihood: the loss is the bits per pixel that the model needs for an image of the training set, an upper bound
because the grey levels are spread over their bins by a learned dequantiser. MNIST is read from data/ and downloaded if it is missing.

    python train_glow_mnist.py --dataset digits      scikit-learn's bundled 8x8 digits: no download; or fashion
    python train_glow_mnist.py --evaluate            the checkpoint's bits/dim on the test images; nothing is trained
    python train_glow_mnist.py --figure-only         only redraws the figures, from the checkpoint
    python train_glow_mnist.py --resume              goes on where a run that was killed or ended by --max-minutes stopped
    torchrun --nproc-per-node 2 train_glow_mnist.py  the same training on two processes: GPUs, or CPUs

Writes   checkpoints/glow_mnist.pt (or glow_fashion.pt, glow_digits.pt), figures/Gen.png, figures/glow_interpolation.png
Takes    about 35 minutes on 2 CPU cores; 1.05 bits/dim
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from flowlib.cli import Parser, number, one_line_errors
from flowlib.distributed import Processes, processes
from flowlib.files import UserError, hardware, require_writable, save_figure, write_atomically, write_metrics
from flowlib.images.datasets import Images, add_dataset_flags, load_images
from flowlib.images.glow import PRECISIONS, Glow, default_checkpoint, load_glow, precision_for, save_glow
from flowlib.plots.glow import interpolation_figure, sample_figure
from flowlib.training import TrainingState, batches, generator_for, load_resume, resume_path, save_resume, stop_requests

STEPS = {"mnist": 13_500, "fashion": 13_500, "digits": 500}  # the 1,257 digits are overfitted after that
PATIENCE = 20  # non-finite steps in a row before training stops
EVERY = 250  # steps between two looks at the held-out images

# ---------------------------------------------------------------- train


def build(images: Images, args) -> Glow:
    """A Glow for these images, its ActNorm layers set on 512 of them."""
    torch.manual_seed(args.seed)
    glow = Glow(images.shape, images.levels, args.blocks, args.hidden, args.depth, dequantiser=args.dequantiser)
    glow.initialise(images.train[:512], generator_for(args.seed, 0))
    return glow.set_precision(precision_for(args.precision, args.device)).to(args.device)


def train(state: TrainingState, images: Tensor, *, steps: int, batch: int, seed: int = 0, group: Processes | None = None) -> Iterator[dict]:
    """Minimises the bits per dimension (Adam, gradient norm clipped at 1, 100 steps of warm-up, then a cosine to zero); one record a step.

    It goes on from `state.step`. Several processes share each batch of `batch` images; the steps are those of one process.
    A record holds step, loss (bits/dim, nan if it was skipped), lr, grad_norm and skipped, the number of steps so far whose loss or
    gradient was not finite: those change nothing. Raises UserError after 20 of them in a row.
    """
    group = group or Processes(0, 1, next(state.model.parameters()).device)
    model = group.wrap(state.model)
    in_a_row = 0
    for chosen in batches(len(images), batch, seed, state.step):
        if state.step >= steps:
            return
        lr = state.lr * min(1, (state.step + 1) / 100) * (1 + math.cos(math.pi * state.step / steps)) / 2
        state.step += 1
        noise = torch.randn(len(chosen), *images.shape[1:], generator=generator_for(seed, state.step))
        loss = model(group.share(images[chosen]), group.share(noise)).mean()
        state.optimiser.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        record = {"step": state.step, "loss": group.mean(loss.detach()).item(), "lr": lr, "grad_norm": grad_norm.item()}
        if math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]):
            for parameters in state.optimiser.param_groups:
                parameters["lr"] = lr
            state.optimiser.step()
            state.update_average()
            in_a_row = 0
        else:
            state.skipped, in_a_row = state.skipped + 1, in_a_row + 1
            if in_a_row == PATIENCE:
                raise UserError(
                    f"the loss or its gradient was not finite {PATIENCE} times in a row, up to step {state.step}: try a lower --lr"
                )
        yield record | {"skipped": state.skipped}


def fit(state: TrainingState, images: Images, args, group: Processes, resume_file: Path, settings: dict) -> bool:
    """Trains with a progress bar, looks at the held-out images and writes resume files; True if all steps have been taken.

    False says that --max-minutes were over; Ctrl-C and SIGTERM raise KeyboardInterrupt after the step. Either way the resume file is there.
    """
    started = time.monotonic() - state.seconds
    limit = math.inf if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
    saved, loss = time.monotonic(), state.curve[-1]["train"] if state.curve else math.nan
    bar = tqdm(total=args.steps * args.batch, initial=state.step * args.batch, unit="image", mininterval=1, disable=not group.first)
    with bar, stop_requests() as stop:
        for record in train(state, images.train, steps=args.steps, batch=args.batch, seed=args.seed, group=group):
            loss = record["loss"] if math.isnan(loss) else 0.98 * loss + 0.02 * record["loss"]
            bar.update(args.batch)
            bar.set_postfix_str(f"{loss:.3f} bits/dim" + (f", {record['skipped']} skipped" if record["skipped"] else ""), refresh=False)
            state.seconds = time.monotonic() - started
            if group.first and (record["step"] % EVERY == 0 or record["step"] == args.steps):
                held_out = evaluate(state.averaged, images.held_out[:1000], args.seed)["bits_per_dim"]
                point = dict(step=record["step"], seconds=round(state.seconds, 1), train=round(loss, 4), held_out=round(held_out, 4))
                state.curve.append(point)
                tqdm.write("step {step:6}   train {train:.3f}   held-out {held_out:.3f} bits/dim   {seconds:.0f} s".format(**point))
                if args.metrics:
                    write_curve(state.curve, args.metrics.with_suffix(".jsonl"))
            if group.any(stop.requested or time.monotonic() > limit):
                break
            if group.first and time.monotonic() - saved > 60 * args.save_minutes:
                save_resume(state, resume_file, settings)
                saved = time.monotonic()
    if group.first:
        save_resume(state, resume_file, settings)
    if stop.requested:
        print(f"wrote {resume_file} at step {state.step} of {args.steps}: --resume goes on from there")
        raise KeyboardInterrupt
    return state.step >= args.steps


def write_curve(curve: list[dict], path: Path) -> None:
    """The held-out curve so far, one JSON object a line."""
    write_atomically(path, lambda temporary: temporary.write_text("".join(json.dumps(point) + "\n" for point in curve)))


# ---------------------------------------------------------------- evaluate


@torch.no_grad()
def evaluate(glow: Glow, images: Tensor, seed: int = 0, draws: int = 1) -> dict[str, float]:
    """Mean bits/dim over the images, and its standard error over them; more `draws` of the noise give a tighter bound."""
    device = next(glow.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    bits = torch.cat([glow.bits_per_dim(chunk.to(device), draws, generator) for chunk in images.split(250)]).double()
    return {"bits_per_dim": bits.mean().item(), "standard_error": (bits.std() / math.sqrt(len(bits))).item()}


def final_figures(glow: Glow, images: Images, seed: int, draws: int = 1) -> dict:
    """The final figures, in float32: bits/dim on the test images, of one draw of the noise and, importance-weighted, of `draws`."""
    glow.set_precision(torch.float32)
    test = evaluate(glow, images.test, seed)
    figures = {
        "data": images.name,
        "test_bits_per_dim": test["bits_per_dim"],
        "test_bits_per_dim_se": test["standard_error"],
        "test_images": len(images.test),
        "held_out_bits_per_dim": evaluate(glow, images.held_out, seed)["bits_per_dim"],
        "parameters": sum(p.numel() for p in glow.parameters()),
    }
    if draws > 1:
        figures |= {"draws": draws, "test_bits_per_dim_weighted": evaluate(glow, images.test, seed, draws)["bits_per_dim"]}
    return figures


def print_figures(figures: dict) -> None:
    """One line on a finished model."""
    bits = f"test {figures['test_bits_per_dim']:.4f} ± {figures['test_bits_per_dim_se']:.4f} bits/dim"
    weighted = f", {figures['test_bits_per_dim_weighted']:.4f} with {figures['draws']} draws" if "draws" in figures else ""
    print(f"{bits}{weighted}   {figures['test_images']:,} images   {figures['parameters']:,} parameters")


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    parser.add_argument("--evaluate", action="store_true", help="print the checkpoint's test figures; nothing is trained or drawn")
    parser.add_argument("--figure-only", action="store_true", help="redraw the figures from the checkpoint; nothing is trained")
    parser.add_argument("--resume", action="store_true", help="go on from the resume file beside the checkpoint, if there is one")
    parser.add_argument("--blocks", type=number(int, 1), default=6, help="GlowBlocks per level (default %(default)s)")
    parser.add_argument("--hidden", type=number(int, 1), default=64, help="channels inside each coupling's network (default %(default)s)")
    parser.add_argument("--depth", type=number(int, 0), default=1, help="residual blocks in each network (default %(default)s)")
    parser.add_argument(
        "--dequantiser", type=number(int, 0), default=32, help="channels of its network; 0: uniform noise (default %(default)s)"
    )
    steps = ", ".join(f"{count} on {name}" for name, count in STEPS.items())
    parser.add_argument("--steps", type=number(int, 1), help=f"training steps, the length of the schedule (default {steps})")
    parser.add_argument("--batch", type=number(int, 2), default=32, help="images per step, over all processes (default %(default)s)")
    parser.add_argument("--lr", type=number(float, 1e-8), default=4e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="of the networks in training; auto: bf16 where the processor has it"
    )
    parser.add_argument("--draws", type=number(int, 1), default=16, help="of the noise, for --evaluate's weighted bound (default 16)")
    parser.add_argument("--max-minutes", type=number(float, 0), help="end this run after so long; --resume goes on with the same schedule")
    parser.add_argument("--save-minutes", type=number(float, 0), default=5, help="time between two resume files (default %(default)s)")
    parser.add_common_flags(
        checkpoint="the weights to write, or with --evaluate and --figure-only to read (default checkpoints/glow_DATASET.pt)"
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    images = load_images(args.dataset, args.data_dir)
    checkpoint = args.checkpoint or default_checkpoint(images.name)
    if args.evaluate or args.figure_only:
        glow = load_glow(checkpoint, args.device, images.shape, images.levels)
        if args.evaluate:
            glow.metrics |= final_figures(glow, images, args.seed, args.draws)
            print_figures(glow.metrics)
    else:
        with processes(args.device) as group:
            glow = train_and_save(images, checkpoint, args, group)
        if glow is None:
            return
    if not args.evaluate:
        save_figure(sample_figure(glow, images.train, args.seed), args.figures, "Gen.png")
        save_figure(interpolation_figure(glow, images.test), args.figures, "glow_interpolation.png")
    if args.metrics:
        write_metrics(args.metrics, glow.metrics, seconds=time.perf_counter() - start, device=args.device, seed=args.seed)


def train_and_save(images: Images, checkpoint: Path, args, group: Processes) -> Glow | None:
    """Trains, from the beginning or from a resume file; the averaged model, or None if --max-minutes ended it or another process has it."""
    args.device, args.steps = group.device, args.steps or STEPS[images.name]
    if args.batch % group.count:
        raise UserError(f"--batch {args.batch} cannot be shared evenly by {group.count} processes")
    require_writable(checkpoint.parent, args.figures)
    state = TrainingState(build(images, args), args.lr)
    names = ("blocks", "hidden", "depth", "dequantiser", "steps", "batch", "lr", "seed")
    settings = {"data": images.name, **{name: getattr(args, name) for name in names}, "precision": str(args.precision)}
    resume_file = resume_path(checkpoint)
    if args.resume and group.first:
        print(f"resuming from {resume_file}" if resume_file.is_file() else f"no resume file at {resume_file}: starting from the beginning")
    if args.resume:
        load_resume(state, resume_file, settings)
        steps = group.mean(torch.tensor(float(state.step), device=group.device))
        if group.any(steps.item() != state.step):
            raise UserError(f"the processes do not resume from the same step: {resume_file} must be the same file on every machine")
    finished = fit(state, images, args, group, resume_file, settings)
    if not group.first:
        return None
    if not finished:
        print(f"{args.max_minutes:g} minutes are over at step {state.step} of {args.steps}: --resume goes on from {resume_file}")
        return None
    if state.skipped:
        print(f"{state.skipped} steps were skipped because their loss or gradient was not finite")
    glow = state.averaged
    glow.metrics = final_figures(glow, images, args.seed)
    glow.metrics |= {
        "training_seconds": round(state.seconds, 1),
        "hardware": hardware(group.device),
        "processes": group.count,
        **settings,
        "skipped": state.skipped,
        "curve": state.curve,
    }
    save_glow(glow, checkpoint, step=state.step, seed=args.seed, metrics=glow.metrics)
    print_figures(glow.metrics)
    return glow


if __name__ == "__main__":
    main()
