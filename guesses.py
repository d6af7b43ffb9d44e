"""Good guesses at what is missing, with any density: from rough ones, by exchanging parts between them and by short ascents.

An ascent mends what is wrong entry by entry, but cannot move a stroke: every pixel of it would have to cross from dark to light first.
A guess that takes a whole patch from another guess can. Both are cheap beside sampling, and a sampler that starts from what they find
(see `posterior_inpaint`) has the less to do.

A mask is True where an entry is *missing*. What lies there in x is never looked at.

Papers: Liang and Wong (2000), Statistica Sinica 10, 317-342 (exchanging parts: evolutionary Monte Carlo); Kingma and Ba (2015),
arXiv:1412.6980 (Adam).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from coordinates import Streams, Target, frozen, to_x, to_y


@torch.no_grad()
def improve_guesses(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    mask: Tensor,
    guesses: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    rounds: int = 4,
    exchanges: int = 10,
    ascent: int = 5,
    lr: float = 0.4,
    unit_interval: bool = True,
    chunk: int = 256,
) -> Tensor:
    """M guesses at each example's missing entries, made better: (M, B, ...) -> (M, B, ...), completed with what is known.

    In each round every guess is offered boxes of entries from other guesses of the same example, and takes one with the Metropolis
    probability min(1, p(new) / p(old)); a short ascent of the log-density follows. Both take the density of y = logit(x), or of x itself
    on the real line. The guesses stay apart where the density allows several, but are no samples of it.

    Args:
        log_prob: (N, ...) -> (N,), nats, differentiable; a density of x itself.
        x: (B, ...) or (M, B, ...): what is known, in the latter case for each guess its own.
        mask: (B, ...) bool, True where missing.
        guesses: (M, B, ...); what they hold where x is known is ignored.
        seeds: (B,), one for each example; 0 ... B-1 if None.
        rounds: of offers and an ascent; 0 only completes the guesses.
        exchanges: offers that each guess gets in a round, each one evaluation.
        ascent: steps (Adam) of each ascent, each one gradient.
        lr: its first learning rate, which falls to a tenth.
        unit_interval: x is in (0, 1); False takes it from the real line.
        chunk: how many points `log_prob` is given at once.
    Raises:
        ValueError: names the argument that cannot be used.
    """
    if mask.dtype != torch.bool or guesses.shape[1:] != mask.shape or x.shape not in (mask.shape, guesses.shape):
        raise ValueError(
            f"x and mask (bool) must have the shape of a guess, {tuple(guesses.shape[1:])}, not {tuple(x.shape)}, "
            f"{mask.dtype} and {tuple(mask.shape)}"
        )
    if len(guesses) == 0 or min(rounds, ascent, exchanges) < 0 or chunk < 1 or not lr > 0:
        raise ValueError(
            "guesses, chunk and lr must be positive, rounds, ascent and exchanges not negative; not "
            f"{(len(guesses), chunk, lr, rounds, ascent, exchanges)}"
        )
    count, (n, *shape) = len(guesses), mask.shape
    streams, everyone = Streams(seeds, n, x), torch.arange(n, device=x.device)
    target = Target(log_prob, shape, unit_interval, chunk)
    hole = mask.flatten(1)[:, None].expand(-1, count, -1)  # everything from here on is (B, M, D)
    known = torch.where(hole, 0.5, x.expand_as(guesses).flatten(2).transpose(0, 1))
    y = to_y(guesses.flatten(2).transpose(0, 1), hole, unit_interval)

    def climb(y: Tensor) -> Tensor:
        mean, square = torch.zeros_like(y), torch.zeros_like(y)
        for step in range(1, ascent + 1):
            gradient = torch.nan_to_num(target.with_gradient(y, known, hole)[1], nan=0.0, posinf=0.0, neginf=0.0)
            mean, square = mean.lerp(gradient, 0.2), square.lerp(gradient.square(), 0.05)
            rms = (square / (1 - 0.95**step)).sqrt()
            y = y + lr * (1 - 0.9 * (step - 1) / ascent) * mean / (1 - 0.8**step) / (rms + 1e-3)
        return y

    def exchange(y: Tensor) -> Tensor:
        log_p = target(y, known, hole)
        for _ in range(exchanges if count > 1 else 0):
            other = 1 + (streams.rand(everyone, count) * (count - 1)).long().clamp(max=count - 2)
            donor = (torch.arange(count, device=x.device) + other) % count  # any but the guess itself
            candidate = torch.where(random_boxes(streams, everyone, hole, shape), y.gather(1, donor[..., None].expand_as(y)), y)
            value = target(candidate, known, hole)
            taken = streams.rand(everyone, count).log() < torch.nan_to_num(value - log_p, nan=-torch.inf)
            y, log_p = torch.where(taken[..., None], candidate, y), torch.where(taken, value, log_p)
        return y

    with frozen(log_prob):
        for _ in range(rounds):
            y = climb(exchange(y))
    return to_x(y, known, hole, unit_interval).transpose(0, 1).reshape(guesses.shape)


def random_boxes(streams: Streams, examples: Tensor, hole: Tensor, shape: Sequence[int]) -> Tensor:
    """A box of entries for each point, bool (B, P, D): at a random missing entry, of a seventh to a half of each side of `shape`."""
    count = hole.shape[1]
    centre = (streams.rand(examples, *hole.shape[1:]) * hole).argmax(2)
    box = torch.ones(*hole.shape[:2], *shape, dtype=torch.bool, device=hole.device)
    for dim in reversed(range(len(shape))):
        size = shape[dim]
        place, centre = centre % size, centre // size
        length = 1 + size // 7 + (streams.rand(examples, count) * (size // 2 - size // 7)).long()
        start = place - (streams.rand(examples, count) * length).long()
        index = torch.arange(size, device=hole.device)
        inside = (index >= start[..., None]) & (index < (start + length)[..., None])
        box &= inside.reshape(*inside.shape[:2], *[size if d == dim else 1 for d in range(len(shape))])
    return box.flatten(2) & hole
