"""What keeps the Glow from learning its training images by heart?

    python -m benchmarks.glow_regularizers --data-dir DATA

On few images a model of the default size overfits within minutes. Each of VARIANTS
trains it on the first images of MNIST, some 21 times on each, for two numbers of
images. Held-out images are those that train_glow_mnist.py holds out too. If it is
started again, what was measured with the same settings is kept.

Writes   benchmarks/results/glow_regularizers.json
Takes    an hour on one CPU core
"""

import json
import time
from dataclasses import asdict, replace

import torch
from torch import nn

import train_glow_mnist
from benchmarks.about import add_data_flag, add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, table
from flowlib.cli import Parser, one_line_errors
from flowlib.files import write_json
from flowlib.images.datasets import Images, load_images
from flowlib.images.glow import Glow
from flowlib.images.glow_layers import ConvNet
from flowlib.muon import Muon, muon_and_adam
from flowlib.training import TrainingState

SIZES = {1500: 500, 3000: 1000}  # training images: steps
BATCH = 64
MEASURED = 1000  # training images, and held-out ones, that bits/dim are measured on
VARIANTS = {
    "nothing": {},
    "shifts by 1 pixel": {"shift": 1},
    "shifts by 2 pixels": {"shift": 2},
    "shifts by 1 pixel to the end": {"shift": 1, "shifted": 1.0},
    "weight decay 0.1": {"decay": 0.1},
    "weight decay 0.3": {"decay": 0.3},
    "dropout 0.1": {"dropout": 0.1},
    "shifts by 1 pixel, weight decay 0.1": {"shift": 1, "decay": 0.1},
}


class DecayingMuon(Muon):
    """Muon with decoupled weight decay: first each parameter shrinks by lr · decay."""

    decay = 0.0

    @torch.no_grad()
    def step(self) -> None:
        for options in self.param_groups:
            shrunk = 1 - options["lr"] * self.decay
            torch._foreach_mul_(options["params"], shrunk)
        super().step()


def add_dropout(glow: Glow, share: float) -> None:
    """Sets this share of what each residual block adds to zero, in training only."""
    for module in glow.modules():
        if isinstance(module, ConvNet):
            for block in module.blocks:
                block.append(nn.Dropout(share))


def train(images: Images, steps: int, variant: dict) -> dict:
    """Trains a model as this variant says; the bits/dim of its averaged weights."""
    device = torch.device("cpu")
    shift = variant.get("shift", 0)
    settings = train_glow_mnist.Settings(steps=steps, batch=BATCH, shift=shift)
    glow = train_glow_mnist.build_glow(images, settings, device)
    add_dropout(glow, variant.get("dropout", 0.0))

    optimizers = muon_and_adam(glow, settings.lr)
    muon = DecayingMuon(optimizers[0].param_groups[0]["params"], settings.lr)
    muon.decay = variant.get("decay", 0.0)
    state = TrainingState(glow, [muon, optimizers[1]])

    usual = train_glow_mnist.SHIFTED
    train_glow_mnist.SHIFTED = variant.get("shifted", usual)
    for _ in train_glow_mnist.train_glow(state, images.train, settings):
        pass
    train_glow_mnist.SHIFTED = usual

    bits = {}
    for part in ("train", "held_out"):
        measured = getattr(images, part)[:MEASURED]
        bits[part], _ = train_glow_mnist.measure_bits(state.averaged, measured)
    return bits | {"training_seconds": round(state.seconds, 1)} | asdict(settings)


def regularizers_table() -> str:
    """Bits/dim on training and held-out images, for both numbers of images."""
    results = load("glow_regularizers")
    found = {(row["variant"], row["images"]): row for row in results["rows"]}
    rows = []
    for name in VARIANTS:
        cells = [name]
        for size in SIZES:
            row = found[name, size]
            gap = row["held_out"] - row["train"]
            cells += [f"{value:.4f}" for value in (row["train"], row["held_out"], gap)]
        rows.append(cells)

    header = ["regularizer"]
    for size in SIZES:
        header += [f"{size:,} images: training", "held-out", "gap"]
    count = f"bits/dim on {MEASURED:,} images each"
    return table(header, rows) + measured_on(results["about"], count, "seed 0")


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_data_flag(parser)
    add_output_flag(parser, "glow_regularizers")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    mnist = load_images("mnist", args.data_dir)
    rows = []
    if args.output.is_file():
        rows = json.loads(args.output.read_text())["rows"]

    for size, steps in SIZES.items():
        images = replace(mnist, train=mnist.train[:size])
        for name, variant in VARIANTS.items():
            key = {"variant": name, "images": size, "options": variant}
            if any(key.items() <= row.items() for row in rows):
                continue
            start = time.perf_counter()
            rows.append(key | train(images, steps, variant))
            about = provenance(command_of("glow_regularizers"), torch.device("cpu"))
            write_json(args.output, {"about": about, "rows": rows})
            bits = "{train:.4f} train, {held_out:.4f} held-out".format(**rows[-1])
            print(f"{name}, {size} images: {bits}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
