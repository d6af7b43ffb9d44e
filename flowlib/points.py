"""The points that a flow is fitted to; those of a shape, whose density is known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowlib.rng import rng
from flowlib.toy2d import SHAPES, Truth

NOISE = 0.05  # of a shape, if no other is asked for


@dataclass(frozen=True)
class Points:
    """What is fitted, points of D columns; draw(n) returns a training batch (n, D)."""

    name: str  # what the names of the files start with
    title: str
    columns: list[str]
    draw: Callable[[int], Tensor]
    test: Tensor  # (N, D)
    made_from: dict  # a fingerprint, plain types
    # Of a shape: points held out, the exact distribution, and its entropy in nats.
    held_out: Tensor | None = None  # (N, D)
    truth: Truth | None = None
    floor: float | None = None
    # Of a table: all rows but those to test on, and parts of them, to fit and held out.
    train: Tensor | None = None  # (N, D)
    folds: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The columns' names for a figure, in which $ begins a formula."""
        if self.truth is not None:
            return self.columns
        return [name.replace("$", r"\$") for name in self.columns]


def make_shape(shape: str, noise: float, seed: int) -> Points:
    """A shape's points. Every training batch is new, so nothing can be overfitted.

    The batches are not independent points but a scrambled Sobol sequence's, which cover
    the shape evenly: a gradient then varies less from batch to batch (randomized
    quasi-Monte Carlo; Buchholz et al. 2018, arXiv:1807.01604).
    """
    truth = SHAPES[shape](noise)
    train_seed = rng(seed, f"{shape} train").initial_seed()
    sobol = torch.quasirandom.SobolEngine(3, scramble=True, seed=train_seed)

    def draw(n: int) -> Tensor:
        # Its numbers are whole multiples of 2⁻³⁰; none may be 0.
        return truth.from_uniform(sobol.draw(n, dtype=torch.float64) + 2**-31)

    # The files of the default noise are called after the shape alone.
    name = shape if noise == NOISE else f"{shape}_noise_{noise:g}"
    return Points(
        name=name,
        title={"checkerboard": "a checkerboard"}.get(shape, f"two {shape}"),
        columns=["$x_1$", "$x_2$"],
        draw=draw,
        held_out=truth.sample(5_000, rng(seed, f"{shape} held-out")),
        test=truth.sample(20_000, rng(seed, f"{shape} test")),
        truth=truth,
        floor=truth.entropy(),
        made_from={"name": shape, "noise": noise},
    )
