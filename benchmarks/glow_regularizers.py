"""What keeps the Glow from learning its training images by heart?

    python -m benchmarks.glow_regularizers --data-dir DATA

On few images a model of the default size overfits within minutes. Each of VARIANTS
trains it on the first images of MNIST, some 21 times on each. Held-out images are those
that train_glow_mnist.py holds out too. If it is started again, what was measured with
the same settings is kept.

Writes   benchmarks/results/glow_regularizers.json
Takes    ten minutes on one CPU core
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, replace

import torch
from torch import Tensor

import train_glow_mnist
from benchmarks.about import add_data_flag, add_output_flag, command_of, provenance
from benchmarks.markdown import load, measured_on, table
from benchmarks.moons_peers import find, load_earlier
from flowlib.cli import Parser, one_line_errors
from flowlib.files import write_json
from flowlib.images.datasets import Images, load_images
from flowlib.muon import Muon, muon_and_adam
from flowlib.training import TrainingState

IMAGES = 1500
STEPS = 500
BATCH = 64
MEASURED = 1000  # training images, and held-out ones, that bits/dim are measured on
VARIANTS: dict[str, dict] = {
    "nothing": {},
    "shifts by 1 pixel": {"shift": 1},
    "weight decay 0.1 in Muon": {"decay": 0.1},
}


class DecayingMuon(Muon):
    """Muon with decoupled weight decay: first each parameter shrinks by lr · decay."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, decay: float):
        super().__init__(parameters, lr)
        self.decay = decay

    @torch.no_grad()
    def step(self) -> None:
        for options in self.param_groups:
            shrunk = 1 - options["lr"] * self.decay
            torch._foreach_mul_(options["params"], shrunk)
        super().step()


def train(images: Images, variant: dict) -> dict:
    """Trains a model as this variant says; the bits/dim of its averaged weights."""
    device = torch.device("cpu")
    shift = variant.get("shift", 0)
    settings = train_glow_mnist.Settings(steps=STEPS, batch=BATCH, shift=shift)
    glow = train_glow_mnist.build_glow(images, settings, device)

    optimizers = muon_and_adam(glow, settings.lr)
    kernels = optimizers[0].param_groups[0]["params"]
    muon = DecayingMuon(kernels, settings.lr, variant.get("decay", 0.0))
    state = TrainingState(glow, [muon, optimizers[1]])

    for _ in train_glow_mnist.train_glow(state, images.train, settings):
        pass

    bits = {}
    for part in ("train", "held_out"):
        measured = getattr(images, part)[:MEASURED]
        bits[part], _ = train_glow_mnist.measure_bits(state.averaged, measured)
    return bits | {"training_seconds": round(state.seconds, 1)} | asdict(settings)


def regularizers_table() -> str:
    """Bits/dim on training and on held-out images, a row a variant."""
    results = load("glow_regularizers")
    rows = []
    for row in results["rows"]:
        bits = (row["train"], row["held_out"], row["held_out"] - row["train"])
        rows.append([row["variant"], *(f"{value:.4f}" for value in bits)])

    header = ["regularizer", "training images, bits/dim", "held-out images", "gap"]
    about = results["about"]
    count = "{images:,} images, {steps} steps of {batch}, seed 0".format(**about)
    return table(header, rows) + measured_on(about, count)


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
    images = replace(mnist, train=mnist.train[:IMAGES])
    about = provenance(command_of("glow_regularizers"), torch.device("cpu"))
    about |= {"images": IMAGES, "steps": STEPS, "batch": BATCH}
    rows = load_earlier(args.output, about)["rows"]

    for name, variant in VARIANTS.items():
        key = {"variant": name, "options": variant}
        if find(rows, **key):
            continue
        start = time.perf_counter()
        rows.append(key | train(images, variant))
        write_json(args.output, {"about": about, "rows": rows})
        bits = "{train:.4f} train, {held_out:.4f} held-out".format(**rows[-1])
        print(f"{name}: {bits}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
