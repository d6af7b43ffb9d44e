"""Plausible fills: similar images, refined until a density finds them likely.

An ascent mends what is wrong pixel by pixel, but it cannot move a stroke: each of its
pixels would have to cross from dark to light first. A fill can take over a whole patch
of another one instead, a crossover (Liang and Wong 2000, Statistica Sinica 10,
317-342). The refined fills then get noise as wide as the density allows.

This is a search, not a sampler. A fill stays near the image that it began as, so how
many of the fills are alike says nothing about their probability.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowlib.inpainting.ascent import climb
from flowlib.inpainting.density import HoleDensity
from flowlib.rng import Streams

LEAST_GAIN = 4.0  # nats, on average over an example's fills
LANGEVIN_STEP = 0.5  # ε, a share of the widths


def nearest_images(
    x: Tensor,
    mask: Tensor,
    references: Tensor,
    k: int,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """The k reference images nearest to each x in its observed pixels: (B, k, ...).

    The nearest comes first. x (B, ...) is looked at only where the mask (B, ...) is
    False. The references are (N, ...); `weight` (B, ...) is that of each pixel's
    squared difference.
    """
    observed = ((~mask).float() * weight).flatten(1)
    x = torch.where(mask, 0, x).flatten(1).float()
    flat = references.flatten(1).float()

    # Σ w (x - r)² without Σ w x², which is the same for every reference: (B, N)
    distance = observed @ flat.square().T - 2 * (observed * x) @ flat.T
    count = min(k, len(references))
    return references[distance.topk(count, dim=1, largest=False).indices]


def similar_images(masked: Tensor, mask: Tensor, references: Tensor, k: int) -> Tensor:
    """The k reference images most similar to each near its hole: (B, k, 1, H, W).

    A pixel counts by how many of the 7x7 pixels around it are missing: what is next to
    the hole says most about what is in it.
    """
    share = nn.functional.avg_pool2d(
        mask.float(),
        7,
        1,
        padding=3,
        count_include_pad=False,
    )
    return nearest_images(masked, mask, references, k, weight=0.05 + share)


@torch.no_grad()
def refine_fills(
    density: HoleDensity,
    y: Tensor,
    similar: Tensor,
    streams: Streams,
    *,
    rounds: int = 7,
    crossovers: int = 8,
    steps: int = 5,
    lr: float = 0.4,
) -> Iterator[Tensor]:
    """Yields fills that fit the observed pixels better, (B, C, D), after each round.

    They begin as y (B, C, D). In each round every fill is offered `crossovers` patches,
    in the first round of the `similar` (B, K, D), later of the other fills. An ascent
    of `steps` steps follows. A patch costs one evaluation of the density, a step one
    gradient.

    An example has at most `rounds` rounds, and no more once the other fills' patches
    gain less than LEAST_GAIN. Those are not taken: so small a gain says little about
    the observed pixels, and much about what the density likes best. The fills would
    grow alike and lose ink.
    """
    y = y.clone()
    left = torch.arange(len(y), device=y.device)  # the examples that have another round
    for i in range(rounds):
        givers = None if i else similar
        random = streams[left.tolist()]
        crossed, gain = cross_over(density[left], y[left], givers, random, crossovers)

        more = (gain >= LEAST_GAIN) | (i == 0)
        left = left[more]
        if not len(left):
            break
        y[left] = climb(density[left], crossed[more], steps, lr)
        yield y


def cross_over(
    density: HoleDensity,
    y: Tensor,
    similar: Tensor | None,
    streams: Streams,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Offers each fill `count` patches, of `similar` (B, K, D) or of the other fills.

    A fill takes a patch with the Metropolis probability min(1, p(new) / p(old)).
    Returns the fills, (B, C, D), and what they gained in log p, in nats, on average
    over an example's: (B,).
    """
    first = density(y)  # (B, C)
    log_p = first
    fills = y.shape[1]
    for _ in range(count):
        givers = y if similar is None else similar
        giver = (streams.rand(fills) * givers.shape[1]).long()  # (B, C)
        patch = random_patches(density.hole, fills, density.shape, streams)
        given = givers.gather(1, giver[..., None].expand_as(y))
        candidate = torch.where(patch, given, y)

        value = density(candidate)
        # False where the density is not a number.
        taken = streams.rand(fills).log() < value - log_p
        y = torch.where(taken[..., None], candidate, y)
        log_p = torch.where(taken, value, log_p)
    return y, (log_p - first).mean(1)


@torch.no_grad()
def add_noise(
    density: HoleDensity,
    y: Tensor,
    width: Tensor,
    streams: Streams,
    steps: int = 2,
) -> Tensor:
    """Moves fills from the tops of the density to where most of its mass is.

    The top of a density is not a typical draw from it. So each entry of y (B, C, D)
    gets normal noise of standard deviation w = `width` (B, C, D), as far as it can move
    before the density changes much. Entries that depend on each other would need less.
    `steps` of Langevin dynamics, a gradient each, take back what was too much, with
    ξ ~ N(0, I):

        y <- y + ε² w² ∇log p(y) / 2 + ε w ξ

    They are not corrected by accepting or rejecting. Sources: Roberts and Tweedie
    (1996), Bernoulli 2, 341-363; Cai et al. (2024), arXiv:2304.08342 (with a flow).
    """
    noise = width * density.hole  # nothing moves outside of the hole
    y = y + noise * streams.randn(*y.shape[1:])
    move = LANGEVIN_STEP * noise
    for _ in range(steps):
        _, grad = density.value_and_grad(y)
        grad = torch.where(grad.isfinite(), grad, 0)
        y = y + move.square() * grad / 2 + move * streams.randn(*y.shape[1:])
    return y


def random_patches(
    hole: Tensor,
    count: int,
    shape: tuple[int, ...],
    streams: Streams,
) -> Tensor:
    """A box of missing entries for each fill: hole (B, 1, D) -> bool (B, count, D).

    It lies around a random missing entry, and its sides are a seventh to a half of the
    hole's. With larger boxes one good fill would replace all others, and they would
    look surer than they are.
    """
    entries = hole.shape[2]
    center = (streams.rand(count, entries) * hole).argmax(2)  # (B, C)
    flat = torch.arange(entries, device=hole.device)
    box = hole
    for index in reversed(torch.unravel_index(flat, shape)):  # along an axis, (D,)
        # How far the hole reaches along this axis: (B, 1).
        last = torch.where(hole, index, -1).amax(2)
        first = torch.where(hole, index, entries).amin(2)
        side = (last - first + 1).clamp(min=1)

        length = 1 + side // 7 + (streams.rand(count) * (side // 2 - side // 7)).long()
        start = index[center] - (streams.rand(count) * length).long()  # (B, C)
        end = start + length
        box = box & (index >= start[..., None]) & (index < end[..., None])
    return box
