"""Trains a small convolutional network that tells digits apart: the judge of what a filled hole has become.

    python -m flowlib.images.classifier

It sees nothing of any flow. inpaint.py asks it which digits the samples of a hole are, benchmarks/inpainting_table.py whether a filled
image is still the digit that it was.

Writes   checkpoints/classifier_mnist.pt (or classifier_fashion.pt, classifier_digits.pt)
Takes    about four minutes on 2 CPU cores; 99.5 % of MNIST's test images
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowlib.cli import Parser, number, one_line_errors
from flowlib.files import ROOT, load_model, save_checkpoint, write_metrics
from flowlib.images.datasets import Images, add_dataset_flags, load_images
from flowlib.training import batches, generator_for

EPOCHS = {"mnist": 6, "fashion": 6, "digits": 60}


class Classifier(nn.Module):
    """Two stages of two 3x3 convolutions, each stage halving the image, then one linear layer.

    Args:
        shape: (1, height, width), multiples of 4.
        levels: number of grey levels.
        width: channels of the first stage; the second has twice as many.
        classes: number of classes.
    """

    def __init__(self, shape=(1, 28, 28), levels: int = 256, width: int = 24, classes: int = 10):
        super().__init__()
        self.config = dict(shape=list(shape), levels=levels, width=width, classes=classes)

        def stage(inputs: int, outputs: int) -> list[nn.Module]:
            layers = []
            for channels in (inputs, outputs):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            return [*layers, nn.MaxPool2d(2)]

        _, height, columns = shape
        self.net = nn.Sequential(
            *stage(1, width),
            *stage(width, 2 * width),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * width * (height // 4) * (columns // 4), classes),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Grey levels 0 ... levels-1, (B, 1, H, W) -> log-probabilities of the classes (B, classes)."""
        return self.net(images.to(next(self.parameters()).dtype) / (self.config["levels"] - 1)).log_softmax(1)

    @torch.no_grad()
    def classify(self, images: Tensor, chunk: int = 500) -> Tensor:
        """The classes' probabilities for any number of images (N, 1, H, W) -> (N, classes)."""
        return torch.cat([self(part).exp() for part in images.split(chunk)])


def train(model: Classifier, images: Images, *, epochs: int, batch: int = 128, lr: float = 4e-3, seed: int = 0) -> Iterator[dict]:
    """Minimises the cross-entropy (AdamW, one-cycle schedule), each image shifted by up to two pixels; yields a record a step."""
    steps = epochs * (len(images.train) // batch)
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.2)
    _, _, height, width = images.train.shape
    reach = 2 if height > 8 else 1
    model.train()
    for step, chosen in zip(range(1, steps + 1), batches(len(images.train), batch, seed, 0)):
        down, right = torch.randint(2 * reach + 1, (2,), generator=generator_for(seed, step)).tolist()
        padded = nn.functional.pad(images.train[chosen], (reach,) * 4)
        seen = padded[..., down : down + height, right : right + width].to(device)
        loss = nn.functional.nll_loss(model(seen), images.train_labels[chosen].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        yield {"step": step, "loss": loss.item(), "steps": steps}
    model.eval()


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of the images that are given their own class."""
    device = next(model.parameters()).device
    return (model.classify(images.to(device)).argmax(1).cpu() == labels).float().mean().item()


def default_classifier(dataset: str) -> Path:
    """Where the shipped classifier of a data set lies."""
    return ROOT / "checkpoints" / f"classifier_{dataset}.pt"


def load_classifier(path: Path, device: str | torch.device = "cpu") -> Classifier:
    """Rebuilds a classifier; raises UserError if the file is missing, damaged or something else."""
    model, _ = load_model(
        Path(path), "classifier", lambda checkpoint: Classifier(**checkpoint["config"]), "`python -m flowlib.images.classifier` makes it"
    )
    return model.to(device).eval()


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    epochs = ", ".join(f"{count} on {name}" for name, count in EPOCHS.items())
    parser.add_argument("--epochs", type=number(int, 1), help=f"passes over the training images (default {epochs})")
    parser.add_common_flags(checkpoint="the weights to write (default checkpoints/classifier_DATASET.pt)")
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None) -> None:
    args = parse_args(argv)
    start = time.perf_counter()
    images = load_images(args.dataset, args.data_dir)
    torch.manual_seed(args.seed)
    model = Classifier(images.shape, images.levels).to(args.device)
    epochs = args.epochs or EPOCHS[images.name]
    with tqdm(total=epochs * (len(images.train) // 128), unit="step", mininterval=1) as bar:
        for record in train(model, images, epochs=epochs, seed=args.seed):
            bar.update()
            bar.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)
    metrics = {
        "data": images.name,
        "held_out_accuracy": accuracy(model, images.held_out, images.held_out_labels),
        "test_accuracy": accuracy(model, images.test, images.test_labels),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    path = args.checkpoint or default_classifier(images.name)
    save_checkpoint(path, "classifier", model.config, model.state_dict(), step=record["step"], seed=args.seed, metrics=metrics)
    print(f"test accuracy {metrics['test_accuracy']:.2%}   {metrics['parameters']:,} parameters   wrote {path}")
    if args.metrics:
        write_metrics(args.metrics, metrics, seconds=time.perf_counter() - start, device=args.device, seed=args.seed)


if __name__ == "__main__":
    main()
