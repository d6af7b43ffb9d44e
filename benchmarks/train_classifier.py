"""Trains the classifier of filled images: a small network that tells digits apart.

    python -m benchmarks.train_classifier --data-dir DATA

It learns from the training images alone, without any flow. inpaint.py asks it which
digits the samples of a hole are.

Writes   checkpoints/classifier_mnist.pt (or classifier_fashion.pt, ...)
Takes    about four minutes on 2 CPU cores; 99.5 % of MNIST's test images are classified
         correctly
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import CHECKPOINTS, save_model, write_metrics
from flowlib.images.classifier import Classifier
from flowlib.images.datasets import Images, add_dataset_flags, load_images
from flowlib.rng import rng
from flowlib.training import batches

EPOCHS = {"mnist": 6, "fashion": 6, "digits": 60}
BATCH = 128


def train_classifier(
    model: Classifier, images: Images, *, epochs: int, lr: float = 4e-3, seed: int = 0
) -> Iterator[dict]:
    """Minimizes the cross-entropy; yields step and loss each step.

    AdamW with a one-cycle schedule.
    """
    steps = epochs * (len(images.train) // BATCH)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.2
    )

    model.train()
    drawn = batches(len(images.train), BATCH, seed, 0)
    for step, chosen in zip(range(1, steps + 1), drawn):
        shifted = shift(images.train[chosen], rng(seed, "shift", step)).to(device)
        labels = images.train_labels[chosen].to(device)
        loss = nn.functional.nll_loss(model(shifted), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield {"step": step, "loss": loss.item()}
    model.eval()


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch (B, 1, H, W), moved as a whole by up to two pixels, if small by one."""
    height, width = images.shape[2:]
    reach = 2 if height > 8 else 1
    down, right = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
    padded = nn.functional.pad(images, (reach,) * 4)
    return padded[..., down : down + height, right : right + width]


def measure_accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of the images that are given their own class."""
    return (model.find_classes(images) == labels).float().mean().item()


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    passes = "passes over the training images (default 6, on the digits 60)"
    parser.add_argument("--epochs", type=number(int, 1), help=passes)
    weights = "the weights to write (default checkpoints/classifier_DATASET.pt)"
    parser.add_common_flags(weights)
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    images = load_images(args.dataset, args.data_dir)
    torch.manual_seed(args.seed)
    model = Classifier(images.shape, images.levels).to(args.device)

    epochs = args.epochs or EPOCHS[images.name]
    steps = epochs * (len(images.train) // BATCH)
    records = train_classifier(model, images, epochs=epochs, seed=args.seed)
    bar = tqdm(records, total=steps, unit="step", mininterval=1)
    for record in bar:
        bar.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)

    held_out = measure_accuracy(model, images.held_out, images.held_out_labels)
    test = measure_accuracy(model, images.test, images.test_labels)
    metrics = {
        "data": images.name,
        "held_out_accuracy": held_out,
        "test_accuracy": test,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }

    path = args.checkpoint or CHECKPOINTS / f"classifier_{images.name}.pt"
    run = {"step": steps, "seed": args.seed, "metrics": metrics}
    save_model(model, path, **run, made_from=images.made_from)
    print(f"test accuracy {test:.2%}   wrote {path}")
    if args.metrics:
        seconds = time.perf_counter() - start
        run = {"seconds": seconds, "device": args.device, "seed": args.seed}
        write_metrics(args.metrics, metrics, **run)


if __name__ == "__main__":
    main()
