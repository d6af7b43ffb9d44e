"""The figures of train_glow_mnist.py: samples beside their nearest training images, and paths between two test images."""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from flowlib.images.datasets import TITLES
from flowlib.images.glow import Glow, quantise

TEMPERATURES = (0.6, 0.8, 1.0)


def sample_figure(glow: Glow, train: Tensor, seed: int = 0, rows: int = 6, columns: int = 6, neighbours: int = 3) -> Figure:
    """Samples at three temperatures, from the same latents up to their scale; and the training images nearest to some at the last one."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    metrics = getattr(glow, "metrics", {})
    bits = f", {metrics['test_bits_per_dim']:.3f} bits/dim on {metrics['test_images']:,} test images" if metrics else ""
    figure.suptitle(f"Samples of a Glow trained on {TITLES[metrics['data']]}{bits}" if metrics else "Samples of a Glow", fontsize=11)
    panels = figure.subplots(1, len(TEMPERATURES) + 1, width_ratios=[columns] * len(TEMPERATURES) + [neighbours + 1])
    for panel, temperature in zip(panels, TEMPERATURES):
        torch.manual_seed(seed)
        samples = glow.sample(rows * columns, temperature).cpu()
        show(panel, samples.reshape(rows, columns, *samples.shape[2:]), glow.levels)
        panel.set_title(f"temperature {temperature:g}" + (" (the model itself)" if temperature == 1 else ""), fontsize=9)
    chosen = samples[::columns]  # the last panel's first column
    distance = torch.cdist(chosen.flatten(1).float(), train.flatten(1).float())
    nearest = train[distance.topk(neighbours, largest=False).indices].squeeze(2)
    show(panels[-1], torch.cat([chosen, nearest], 1), glow.levels)
    panels[-1].axvline(chosen.shape[3] + 0.5, color="tab:orange", linewidth=2)
    panels[-1].set_title(f"its first column | the {neighbours} nearest\nof {len(train):,} training images", fontsize=9)
    return figure


@torch.no_grad()
def interpolation_figure(glow: Glow, images: Tensor, rows: int = 6, steps: int = 11, seed: int = 0) -> Figure:
    """Straight lines between the latents of two images each, decoded: first and last column are the images themselves."""
    device = next(glow.parameters()).device
    pairs = images[: 2 * rows].to(device)
    latents, _ = glow.encode(glow.dequantise(pairs, torch.Generator().manual_seed(seed)))
    columns = []
    for weight in torch.linspace(0, 1, steps).tolist():
        v, _ = glow.decode([torch.lerp(z[::2], z[1::2], weight) for z in latents])
        columns.append(quantise(v, glow.levels).squeeze(1).cpu())
    figure = Figure(figsize=(0.62 * steps, 0.62 * rows + 0.5), layout="constrained")
    figure.suptitle("Straight lines in latent space between two test images (first and last column)", fontsize=10)
    show(figure.subplots(), torch.stack(columns, 1), glow.levels)
    return figure


def show(panel, images: Tensor, levels: int) -> None:
    """Draws (rows, columns, H, W) as one grey picture, with a line between the images."""
    images = nn.functional.pad(images, (0, 1, 0, 1), value=levels // 3)
    rows, columns, height, width = images.shape
    picture = images.transpose(1, 2).reshape(rows * height, columns * width)[:-1, :-1]
    panel.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=levels - 1)
    panel.set_axis_off()
