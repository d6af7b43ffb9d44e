"""The figures of train_glow_mnist.py: samples, and paths between test images."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from flowlib.files import readable
from flowlib.images.datasets import TITLES
from flowlib.images.glow import Glow
from flowlib.rng import rng

TEMPERATURES = (0.6, 0.8, 1.0)
SIDE = 6  # rows of each panel, and columns of samples
NEAREST = 3
STEPS = 11  # of a line between two images


def sample_figure(glow: Glow, train: Tensor, seed: int = 0) -> Figure:
    """Samples at three temperatures, and the training images that some are nearest to.

    All three panels show the same noise. `train` are the training images, uint8
    (N, 1, H, W).
    """
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    figure.suptitle(f"Samples of a Glow{_describe(glow)}", fontsize=11)
    widths = [SIDE] * len(TEMPERATURES) + [NEAREST + 1]
    panels = figure.subplots(1, len(widths), width_ratios=widths)

    for panel, temperature in zip(panels, TEMPERATURES):
        v = glow.sample(SIDE * SIDE, rng(seed, "samples"), temperature)
        samples = glow.quantize(v).cpu().unflatten(0, (SIDE, SIDE))
        samples = samples.squeeze(2)  # (SIDE, SIDE, H, W)
        draw_images(panel, samples, glow.levels)
        note = ": the model itself" if temperature == 1 else ""
        panel.set_title(f"temperature {temperature:g}{note}", fontsize=9)

    # The last panel: the first column of samples, each beside its nearest images.
    chosen = samples[:, :1]  # (SIDE, 1, H, W)
    distance = torch.cdist(chosen.flatten(1).float(), train.flatten(1).float())
    nearest = distance.topk(NEAREST, largest=False).indices  # (SIDE, NEAREST)
    pairs = torch.cat([chosen, train[nearest].squeeze(2)], 1)
    draw_images(panels[-1], pairs, glow.levels)
    panels[-1].axvline(chosen.shape[3] + 0.5, color="tab:orange", linewidth=2)
    title = f"A sample (left) and the {NEAREST}\ntraining images nearest to it"
    panels[-1].set_title(title, fontsize=9)
    return figure


def _describe(glow: Glow) -> str:
    """What the model was trained on and how good it is, "" if it does not say."""
    metrics = getattr(glow, "metrics", {})
    if not metrics:
        return ""

    folder = readable(Path(metrics["data"]).name).replace("$", r"\$")
    data = TITLES.get(metrics["data"], folder)
    quality = "{test_bits_per_dim:.3f} bits/dim on {test_images:,} test images"
    return f" trained on {data}: {quality.format(**metrics)}"


@torch.no_grad()
def interpolation_figure(
    glow: Glow,
    images: Tensor,
    seed: int = 0,
) -> Figure:
    """Straight lines between the latents of two images each, decoded.

    The ends of each line are the images, (N, 1, H, W), of which the first 12 are taken.
    """
    noise = rng(seed, "interpolation")
    v = glow.dequantize(images[: 2 * SIDE].to(glow.device), noise)
    latents, _ = glow.encode(v)
    columns = []
    for weight in torch.linspace(0, 1, STEPS).tolist():
        v, _ = glow.decode([torch.lerp(z[::2], z[1::2], weight) for z in latents])
        columns.append(glow.quantize(v).squeeze(1).cpu())  # (SIDE, H, W)

    figure = Figure(figsize=(0.62 * STEPS, 0.62 * SIDE + 0.5), layout="constrained")
    title = "Straight lines in latent space between two test images"
    figure.suptitle(f"{title} (first and last column)", fontsize=10)
    draw_images(figure.subplots(), torch.stack(columns, 1), glow.levels)
    return figure


def draw_images(panel: Axes, images: Tensor, levels: int) -> None:
    """Draws (rows, columns, H, W) as one grey picture, with lines between images."""
    images = nn.functional.pad(images, (0, 1, 0, 1), value=levels // 3)
    rows, columns, height, width = images.shape
    picture = images.transpose(1, 2).reshape(rows * height, columns * width)[:-1, :-1]
    panel.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=levels - 1)
    panel.set_axis_off()
