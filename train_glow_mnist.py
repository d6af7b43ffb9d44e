"""Trains a Glow on MNIST and draws samples from it.

    python train_glow_mnist.py

trains by maximum likelihood: the loss is the bits per pixel that the model needs for an image of the training set, an upper bound
because the grey levels are spread over their bins by a learned dequantiser. MNIST is read from data/ and downloaded if it is missing.

    python train_glow_mnist.py --dataset digits      scikit-learn's bundled 8x8 digits: no download, half a minute
    python train_glow_mnist.py --figure-only         only redraws the figure, from the checkpoint

Writes   checkpoints/glow_mnist.pt (or glow_digits.pt), figures/Gen.png
Takes    about 9.5 minutes on 2 CPU cores; ends at about 1.15 bits per dimension on MNIST's 10,000 test images
"""

import math
import time
from collections.abc import Iterator

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from common import Parser, UserError, number, one_line_errors, require_writable, save_figure, write_metrics
from glow import TITLES, Glow, Images, add_dataset_flags, default_checkpoint, load_glow, load_images, save_glow

TEMPERATURES = (0.7, 0.85, 1.0)
STEPS = {"mnist": 4000, "digits": 600}  # the 1,257 digits are overfitted after that
PATIENCE = 20  # non-finite steps in a row before training stops

# ---------------------------------------------------------------- train


def build(images: Images, args) -> Glow:
    """A Glow for these images, its ActNorm layers set on 512 of them."""
    glow = Glow(images.shape, images.levels, args.blocks, args.hidden)
    glow.initialise(images.train[:512])
    return glow.to(args.device)


def train(glow: Glow, images: Tensor, *, steps: int, batch: int, lr: float, seed: int = 0) -> Iterator[dict]:
    """Minimises the bits per dimension (Adam, gradient norm clipped at 1, 100 steps of warm-up, then a cosine to zero); one record a step.

    A record holds step, loss (bits/dim, nan if it was skipped), lr, grad_norm and skipped, the number of steps so far whose loss or
    gradient was not finite: those change nothing. Raises UserError after 20 of them in a row.
    """
    device = next(glow.parameters()).device
    order = torch.Generator().manual_seed(seed)
    noise = torch.Generator(device).manual_seed(seed)
    optimiser = torch.optim.Adam(glow.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    skipped = in_a_row = 0
    remaining = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(remaining) == 0:
            remaining = torch.randperm(len(images), generator=order)
        chosen, remaining = remaining[:batch], remaining[batch:]
        loss = glow.bits_per_dim(images[chosen].to(device), generator=noise).mean()
        optimiser.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(glow.parameters(), 1.0)
        record = {"step": step, "loss": loss.item(), "lr": schedule.get_last_lr()[0], "grad_norm": grad_norm.item()}
        if math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]):
            optimiser.step()
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row == PATIENCE:
                raise UserError(f"the loss or its gradient was not finite {PATIENCE} times in a row, up to step {step}: try a lower --lr")
        schedule.step()
        yield record | {"skipped": skipped}


def fit(glow: Glow, images: Images, args) -> dict:
    """Trains with a progress bar; returns the final figures, test bits/dim among them."""
    start, curve, loss = time.perf_counter(), [], math.nan
    with tqdm(total=args.steps, unit="step", mininterval=1) as bar:
        for record in train(glow, images.train, steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed):
            loss = record["loss"] if math.isnan(loss) else 0.98 * loss + 0.02 * record["loss"]
            bar.update()
            bar.set_postfix_str(f"{loss:.3f} bits/dim" + (f", {record['skipped']} skipped" if record["skipped"] else ""), refresh=False)
            if record["step"] % 250 == 0 or record["step"] == args.steps:
                held_out, seconds = evaluate(glow, images.held_out[:1000], args.seed)["bits_per_dim"], time.perf_counter() - start
                curve.append(
                    {"step": record["step"], "seconds": round(seconds, 1), "train": round(loss, 4), "held_out": round(held_out, 4)}
                )
                tqdm.write(f"step {record['step']:5}   train {loss:.3f}   held-out {held_out:.3f} bits/dim   {seconds:.0f} s")
    if record["skipped"]:
        print(f"{record['skipped']} steps were skipped because their loss or gradient was not finite")
    test = evaluate(glow, images.test, args.seed)
    return {
        "data": images.name,
        "test_bits_per_dim": test["bits_per_dim"],
        "test_bits_per_dim_se": test["standard_error"],
        "test_images": len(images.test),
        "held_out_bits_per_dim": evaluate(glow, images.held_out, args.seed)["bits_per_dim"],
        "training_seconds": curve[-1]["seconds"],
        "steps": args.steps,
        "skipped": record["skipped"],
        "parameters": sum(p.numel() for p in glow.parameters()),
        "curve": curve,
    }


# ---------------------------------------------------------------- evaluate


@torch.no_grad()
def evaluate(glow: Glow, images: Tensor, seed: int = 0, draws: int = 1) -> dict[str, float]:
    """Mean bits/dim over the images, and its standard error over them."""
    device = next(glow.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    bits = torch.cat([glow.bits_per_dim(chunk.to(device), draws, generator) for chunk in images.split(500)]).double()
    return {"bits_per_dim": bits.mean().item(), "standard_error": (bits.std() / math.sqrt(len(bits))).item()}


# ---------------------------------------------------------------- figure


def sample_figure(glow: Glow, seed: int = 0, rows: int = 6, columns: int = 8) -> Figure:
    """A grid of samples at each of three temperatures, the same latents in each up to their scale."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    metrics = getattr(glow, "metrics", {})
    bits = f", {metrics['test_bits_per_dim']:.3f} bits/dim on {metrics['test_images']:,} test images" if metrics else ""
    figure.suptitle(f"Samples of a Glow trained on {TITLES[metrics['data']]}{bits}" if metrics else "Samples of a Glow")
    for panel, temperature in zip(figure.subplots(1, len(TEMPERATURES)), TEMPERATURES):
        torch.manual_seed(seed)
        samples = glow.sample(rows * columns, temperature).cpu().squeeze(1)
        height, width = samples.shape[1:]
        grid = samples.reshape(rows, columns, height, width).transpose(1, 2).reshape(rows * height, columns * width)
        panel.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=glow.levels - 1)
        panel.set_title(f"temperature {temperature:g}" + (" (the model itself)" if temperature == 1 else ""), fontsize=10)
        panel.set_axis_off()
    return figure


# ---------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    parser.add_argument("--figure-only", action="store_true", help="redraw the figure from the checkpoint; nothing is trained")
    parser.add_argument("--blocks", type=number(int, 1), default=8, help="GlowBlocks per level (default %(default)s)")
    parser.add_argument("--hidden", type=number(int, 1), default=64, help="channels inside each coupling's network (default %(default)s)")
    parser.add_argument(
        "--steps", type=number(int, 1), help=f"training steps (default {STEPS['mnist']} on mnist, {STEPS['digits']} on digits)"
    )
    parser.add_argument("--batch", type=number(int, 2), default=64, help="images per step (default %(default)s)")
    parser.add_argument("--lr", type=number(float, 1e-8), default=4e-3, help="peak learning rate (default %(default)s)")
    parser.add_common_flags(checkpoint="the weights to write, or with --figure-only to read (default checkpoints/glow_DATASET.pt)")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    if args.figure_only:
        dataset = "mnist" if args.dataset == "auto" else args.dataset
        glow = load_glow(args.checkpoint or default_checkpoint(dataset), args.device)
    else:
        torch.manual_seed(args.seed)
        images = load_images(args.dataset, args.data_dir)
        checkpoint = args.checkpoint or default_checkpoint(images.name)
        args.steps = args.steps or STEPS[images.name]
        require_writable(checkpoint.parent, args.figures)
        glow = build(images, args)
        glow.metrics = fit(glow, images, args)
        save_glow(glow, checkpoint, step=args.steps, seed=args.seed, metrics=glow.metrics)
        print_result(glow.metrics)
    save_figure(sample_figure(glow, args.seed), args.figures, "Gen.png")
    if args.metrics:
        write_metrics(args.metrics, glow.metrics, seconds=time.perf_counter() - start, device=args.device, seed=args.seed)


def print_result(metrics: dict) -> None:
    """One line on the finished model."""
    bits = f"test {metrics['test_bits_per_dim']:.4f} ± {metrics['test_bits_per_dim_se']:.4f} bits/dim"
    print(f"{bits}   {metrics['parameters']:,} parameters   {metrics['training_seconds']:.0f} s of training")


if __name__ == "__main__":
    main()
