"""Hamiltonian Monte Carlo: samples of the missing cells given the observed ones.

A chain moves through fills y like a ball through a landscape of height
U(y) = -log p(y). A move gives it a random momentum r, follows it for a few leapfrog
steps, and accepts where it has come to with probability min(1, exp(H - H')), where
H = U + |r|² / 2 is the energy. This leaves p as it is, as long as the step size does
not depend on where the chain has been. So the first half of the moves adapts it,
towards an acceptance of 65 %, and the second half keeps it.

Source: Neal (2011), arXiv:1206.1901, sections 2, 4.2 (a step size for each entry) and
5.4.4.
"""

import math

import torch
from torch import Tensor

from flowlib.inpainting.density import HoleDensity
from flowlib.rng import Streams

ACCEPTANCE = 0.65


@torch.no_grad()
def sample_hmc(
    density: HoleDensity,
    y: Tensor,
    width: Tensor,
    streams: Streams,
    *,
    moves: int,
    leapfrog: int,
) -> Tensor:
    """Moves C chains for each of B examples from y; returns where they end, (B, C, D).

    Args:
        y: (B, C, D), where the chains start.
        width: (B, C, D), how far each entry can move before the density changes much;
            the steps are in proportion to it, which is the same as giving each entry a
            mass of 1 / width².
        moves, leapfrog: moves of each chain, and steps of a move, each of which costs
            one gradient.
    Raises:
        ValueError: if one of these two is not positive.
    """
    if min(moves, leapfrog) < 1:
        raise ValueError(
            f"moves and leapfrog must be at least 1, not {moves} and {leapfrog}"
        )

    count, entries = y.shape[1:]
    log_p, grad = density.value_and_grad(y)
    step = y.new_full((len(y), 1), 0.2)
    for move in range(moves):
        momentum = streams.randn(count, entries) * density.hole
        # Steps of varying length keep a chain from running in circles: (B, C, D).
        length = step[..., None] * (0.8 + 0.4 * streams.rand(count, 1)) * width
        energy = momentum.square().sum(2) / 2 - log_p

        new_y = y
        new_grad = grad
        for _ in range(leapfrog):
            momentum = momentum + length / 2 * new_grad
            new_y = new_y + length * momentum
            new_log_p, new_grad = density.value_and_grad(new_y)
            momentum = momentum + length / 2 * new_grad

        # A state whose density is not a number is never accepted.
        new_energy = momentum.square().sum(2) / 2 - new_log_p
        gain = torch.nan_to_num(energy - new_energy, nan=-math.inf)
        chance = gain.clamp(max=0).exp()  # (B, C)
        accepted = streams.rand(count) < chance
        y = torch.where(accepted[..., None], new_y, y)
        grad = torch.where(accepted[..., None], new_grad, grad)
        log_p = torch.where(accepted, new_log_p, log_p)

        if move < moves // 2:
            surplus = chance.mean(1, keepdim=True) - ACCEPTANCE
            step = (step * (surplus / 2).exp()).clamp(1e-4, 1.5)
    return y
