"""The figures of train_glow_mnist.py: samples, and paths between test images."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from flowlib.files import readable
from flowlib.images.datasets import TITLES
from flowlib.images.glow import Glow
from flowlib.rng import rng

TEMPERATURES = (0.6, 0.8, 1.0)
ROWS, COLUMNS, NEAREST = 6, 6, 3


def sample_figure(glow: Glow, train: Tensor, seed: int = 0) -> Figure:
    """Samples of the same noise at three temperatures; the images of `train` nearest to some."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    title = "Samples of a Glow"
    if metrics := getattr(glow, "metrics", {}):
        bits, count = metrics["test_bits_per_dim"], metrics["test_images"]
        folder = readable(Path(metrics["data"]).name).replace("$", r"\$")
        model = f" trained on {TITLES.get(metrics['data'], folder)}"
        title += f"{model}: {bits:.3f} bits/dim on {count:,} test images"
    figure.suptitle(title, fontsize=11)
    widths = [COLUMNS] * len(TEMPERATURES) + [NEAREST + 1]
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    for panel, temperature in zip(panels, TEMPERATURES):
        v = glow.sample(ROWS * COLUMNS, rng(seed, "samples"), temperature)
        samples = glow.quantize(v).cpu().unflatten(0, (ROWS, COLUMNS)).squeeze(2)
        draw_images(panel, samples, glow.levels)  # (ROWS, COLUMNS, H, W)
        note = ": the model itself" if temperature == 1 else ""
        panel.set_title(f"temperature {temperature:g}{note}", fontsize=9)
    chosen = samples[:, :1]  # (ROWS, 1, H, W)
    # (ROWS, N)
    distance = torch.cdist(chosen.flatten(1).float(), train.flatten(1).float())
    nearest = train[distance.topk(NEAREST, largest=False).indices].squeeze(2)
    draw_images(panels[-1], torch.cat([chosen, nearest], 1), glow.levels)
    panels[-1].axvline(chosen.shape[3] + 0.5, color="tab:orange", linewidth=2)
    panels[-1].set_title(
        "A sample (left) and the 3\ntraining images nearest to it", fontsize=9
    )
    return figure


@torch.no_grad()
def interpolation_figure(
    glow: Glow, images: Tensor, seed: int = 0, steps: int = 11
) -> Figure:
    """Straight lines between the latents of two images each, decoded; the ends are the images."""
    v = glow.dequantize(images[: 2 * ROWS].to(glow.device), rng(seed, "interpolation"))
    latents, _ = glow.encode(v)
    columns = []
    for weight in torch.linspace(0, 1, steps).tolist():
        v, _ = glow.decode([torch.lerp(z[::2], z[1::2], weight) for z in latents])
        columns.append(glow.quantize(v).squeeze(1).cpu())  # (ROWS, H, W)
    figure = Figure(figsize=(0.62 * steps, 0.62 * ROWS + 0.5), layout="constrained")
    title = (
        "Straight lines in latent space between two test images (first and last column)"
    )
    figure.suptitle(title, fontsize=10)
    draw_images(figure.subplots(), torch.stack(columns, 1), glow.levels)
    return figure


def draw_images(panel, images: Tensor, levels: int) -> None:
    """Draws (rows, columns, H, W) as one grey picture, with a line between the images."""
    images = nn.functional.pad(images, (0, 1, 0, 1), value=levels // 3)
    rows, columns, height, width = images.shape
    picture = images.transpose(1, 2).reshape(rows * height, columns * width)[:-1, :-1]
    panel.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=levels - 1)
    panel.set_axis_off()
