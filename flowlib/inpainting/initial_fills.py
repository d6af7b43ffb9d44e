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

from flowlib.inpainting.density import Streams, Target, frozen, to_x, to_y


@torch.no_grad()
def improve_guesses(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    mask: Tensor,
    guesses: Tensor,
    *,
    donors: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    rounds: int = 4,
    exchanges: int = 12,
    ascent: int = 5,
    lr: float = 0.4,
    unit_interval: bool = True,
    chunk: int = 256,
) -> Tensor:
    """M guesses at each example's missing entries, made better: (M, B, ...) -> (M, B, ...), completed with what is known.

    In each round every guess is offered boxes of entries from the same example's guesses, in the first round from `donors`, and takes one
    with the Metropolis probability min(1, p(new) / p(old)); a short ascent of the log-density follows. Both take the density of
    y = logit(x), or of x itself on the real line. The guesses stay apart where the density allows several, but are no samples of it.

    Args:
        log_prob: (N, ...) -> (N,), nats, differentiable; a density of x itself.
        x: (B, ...) or (M, B, ...): what is known, in the latter case for each guess its own.
        mask: (B, ...) bool, True where missing.
        guesses: (M, B, ...); what they hold where x is known is ignored.
        donors: (K, B, ...), rough guesses that give in the first round; the guesses themselves if None.
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
    if donors is not None and (donors.shape[1:] != mask.shape or len(donors) == 0):
        raise ValueError(f"donors must be of shape (K, {', '.join(map(str, mask.shape))}), not {tuple(donors.shape)}")
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
    rough = None if donors is None else to_y(donors.flatten(2).transpose(0, 1), hole[:, :1], unit_interval)

    def climb(y: Tensor) -> Tensor:
        mean, square = torch.zeros_like(y), torch.zeros_like(y)
        for step in range(1, ascent + 1):
            gradient = torch.nan_to_num(target.with_gradient(y, known, hole)[1], nan=0.0, posinf=0.0, neginf=0.0)
            mean, square = mean.lerp(gradient, 0.2), square.lerp(gradient.square(), 0.05)
            rms = (square / (1 - 0.95**step)).sqrt()
            y = y + lr * (1 - 0.9 * (step - 1) / ascent) * mean / (1 - 0.8**step) / (rms + 1e-3)
        return y

    def exchange(y: Tensor, others: Tensor | None) -> Tensor:
        if others is None and count == 1:
            return y  # it could only be offered parts of itself
        log_p = target(y, known, hole)
        for _ in range(exchanges):
            givers = y if others is None else others
            giver = (streams.rand(everyone, count) * givers.shape[1]).long()[..., None].expand_as(y)
            candidate = torch.where(random_boxes(streams, everyone, hole, shape), givers.gather(1, giver), y)
            value = target(candidate, known, hole)
            taken = streams.rand(everyone, count).log() < torch.nan_to_num(value - log_p, nan=-torch.inf)
            y, log_p = torch.where(taken[..., None], candidate, y), torch.where(taken, value, log_p)
        return y

    with frozen(log_prob):
        for i in range(rounds):
            y = climb(exchange(y, rough if i == 0 else None))
    return to_x(y, known, hole, unit_interval).transpose(0, 1).reshape(guesses.shape)


def random_boxes(streams: Streams, examples: Tensor, hole: Tensor, shape: Sequence[int]) -> Tensor:
    """A box of entries for each point, bool (B, P, D): at a random missing entry, of a seventh to a half of each side of the hole.

    Boxes that cover most of a hole would let one good guess replace all others, and what is left of them would look surer than it is.
    """
    count = hole.shape[1]
    missing = hole[:, 0].unflatten(1, (*shape, 1))
    centre = (streams.rand(examples, *hole.shape[1:]) * hole).argmax(2)
    box = torch.ones(*hole.shape[:2], *shape, dtype=torch.bool, device=hole.device)
    for dim in reversed(range(len(shape))):
        size, index = shape[dim], torch.arange(shape[dim], device=hole.device)
        place, centre = centre % size, centre // size
        along = missing.movedim(1 + dim, 1).flatten(2).any(2)
        side = (torch.where(along, index, -1).amax(1) - torch.where(along, index, size).amin(1) + 1).clamp(min=1)[:, None]
        length = 1 + side // 7 + (streams.rand(examples, count) * (side // 2 - side // 7)).long()
        start = place - (streams.rand(examples, count) * length).long()
        inside = (index >= start[..., None]) & (index < (start + length)[..., None])
        box &= inside.reshape(*inside.shape[:2], *[size if d == dim else 1 for d in range(len(shape))])
    return box.flatten(2) & hole
