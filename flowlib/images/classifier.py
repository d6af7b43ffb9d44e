"""The classifier of filled images: a small network that tells digits apart."""

from pathlib import Path

import torch
from torch import Tensor, nn

from flowlib.files import load_model


class Classifier(nn.Module):
    """Two stages of two 3x3 convolutions, each halving the image; one linear layer.

    The first stage has `width` channels, the second twice as many.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 28, 28),
        levels: int = 256,
        width: int = 24,
        classes: int = 10,
    ):
        super().__init__()
        sides = shape[1:]
        if not (0 < width <= 1024 and 0 < classes <= 1000 and 4 <= min(sides) <= 512):
            raise ValueError(
                f"width {width}, classes {classes} or shape {shape} cannot be"
            )

        self.levels = levels
        self.config = {
            "shape": list(shape),
            "levels": levels,
            "width": width,
            "classes": classes,
        }

        layers = []
        inputs = 1
        for outputs in (width, 2 * width):
            for channels in (inputs, outputs):
                layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            inputs = outputs
        features = 2 * width * (sides[0] // 4) * (sides[1] // 4)
        layers += [nn.Flatten(), nn.Dropout(0.3), nn.Linear(features, classes)]
        self.net = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Grey levels (B, 1, H, W) -> the classes' log-probabilities (B, classes)."""
        grey = images.to(self.net[0].weight.dtype) / (self.levels - 1)
        return self.net(grey).log_softmax(1)

    @torch.no_grad()
    def classify(self, images: Tensor, chunk: int = 500) -> Tensor:
        """The classes' probabilities of many images, (N, 1, H, W) -> (N, classes)."""
        device = self.net[0].weight.device
        return torch.cat([self(part.to(device)).exp() for part in images.split(chunk)])

    def find_classes(self, images: Tensor) -> Tensor:
        """The likeliest class of each image, on the CPU: (..., 1, H, W) -> (...)."""
        classes = self.classify(images.flatten(0, -4)).argmax(1).cpu()
        return classes.unflatten(0, images.shape[:-3])


def load_classifier(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """The trained classifier; UserError if the file is missing or unusable."""
    hint = "`python -m benchmarks.train_classifier` makes it"
    return load_model(path, Classifier, device, hint)
