"""The methods of inpainting_table.py, each from masked images to fills."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.baselines import Mixture, UNet, biharmonic, nearest_mean, train_unet
from flowlib.files import ROOT, SHIPPED, write_atomically
from flowlib.images.classifier import load_classifier
from flowlib.images.datasets import Images
from flowlib.images.glow import Glow
from flowlib.inpainting.fill import Fill, Problem
from flowlib.inpainting.inpainter import Inpainter
from flowlib.inpainting.masks import draw_masks
from flowlib.rng import rng

FOLDER = ROOT / "benchmarks/runs/inpainting"
MASKS = [f"square:{side}" for side in (8, 10, 14, 18)]
MASKS += [f"noise:{share}" for share in (0.5, 0.75, 0.9)]
MASKS += ["top", "bottom", "left", "right"]
SLOW = {"biharmonic": ("noise:0.9",)}  # its linear system takes minutes there


def cut_holes(
    kind: str, inpainter: Inpainter, grey: Tensor, seeds: Sequence[int]
) -> Problem:
    """A hole in each image, drawn by the image's own seed, whatever the others are."""
    shape = inpainter.glow.shape
    masks = [draw_masks(kind, 1, shape, seed) for seed in seeds]
    return Problem.cut(grey, torch.cat(masks), seeds, inpainter.truth(grey, seeds))


class Methods:
    """All methods, fitted on the training images when they are first used."""

    def __init__(self, images: Images, glow: Glow):
        self.images = images
        self.inpainter = Inpainter(glow, images.train)
        self.grey = images.train.float() / 255
        self.pixel_mean = self.grey.mean(0)
        self.classifier = load_classifier(SHIPPED / f"classifier_{images.name}.pt")

    @cached_property
    def mixture(self) -> Mixture:
        """The Gaussian mixture."""
        return fitted_mixture(self.images)

    @cached_property
    def unet(self) -> UNet:
        """The supervised U-Net."""
        return fitted_unet(self.images)

    @torch.no_grad()
    def simple(self, masked: Tensor, mask: Tensor, kind: str) -> dict[str, tuple]:
        """Name -> (fill,) or (fill, several); those that need no flow."""
        calls = {
            "zero": lambda: masked,
            "pixel mean": lambda: self.pixel_mean,
            "nearest neighbor": lambda: nearest_mean(masked, mask, self.grey, 1),
            "mean of 20 nearest": lambda: nearest_mean(masked, mask, self.grey, 20),
            "biharmonic": lambda: biharmonic(masked, mask),
            "U-Net, supervised": lambda: self.unet.fill(masked, mask),
        }
        found: dict[str, tuple] = {}
        for name, call in calls.items():
            if kind not in SLOW.get(name, ()):
                found[name] = (torch.where(mask, call(), masked),)

        mean, samples = self.mixture.fill(masked, mask, 32, rng(0, "mixture"))
        drawn = samples.transpose(0, 1)  # (B, C, 1, H, W)
        found["Gaussian mixture, mean"] = (mean,)
        found["Gaussian mixture, sample"] = (drawn[:, 0], drawn)
        return found

    def ascents(self, problem: Problem, fill: Fill) -> dict[str, Tensor]:
        """v (B, 1, H, W): the MAP estimate, and where the likeliest fill leads."""
        starts = self.inpainter.starts(fill)
        return {
            "MAP": self.inpainter.find_map(problem, starts),
            "MAP from fill": self.inpainter.find_map(problem, starts[:, 1:]),
        }

    def ours(self, problem: Problem) -> tuple[dict[str, tuple], Fill]:
        """Likewise for our fills; and what `Inpainter.find_fills` returns."""
        fill = self.inpainter.find_fills(problem)
        plausible = fill.grey(fill.plausible)
        found = {
            "ours, mean": (fill.mean(),),
            "ours, medoid": (plausible[torch.arange(len(fill)), fill.medoid()],),
            "ours, one fill": (plausible[:, 0], plausible),
        }
        return found, fill


def fitted_mixture(images: Images) -> Mixture:
    """The Gaussian mixture, from the folder of runs if it was fitted before."""
    file = FOLDER / "mixture.pt"
    if not file.is_file():
        fresh = Mixture.fit(images.train[:20_000].float() / 255)
        write_atomically(file, lambda temporary: torch.save(vars(fresh), temporary))
    return Mixture(**torch.load(file, weights_only=True))


def fitted_unet(images: Images) -> UNet:
    """The supervised U-Net, likewise."""
    file = FOLDER / "unet.pt"
    unet = UNet().eval()
    if not file.is_file():
        weights = train_unet(images.train.float() / 255, MASKS).state_dict()
        write_atomically(file, lambda temporary: torch.save(weights, temporary))
    unet.load_state_dict(torch.load(file, weights_only=True))
    return unet
