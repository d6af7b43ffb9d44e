"""The points that a flow is fitted to: a shape's, of known density, or a file's."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flowlib.files import readable
from flowlib.grids import evaluate
from flowlib.rng import rng
from flowlib.toy2d import SHAPES, Truth
from flowlib.user_points import read_points

NOISE = 0.05  # of a shape, if no other is asked for


@dataclass(frozen=True)
class Points:
    """What is fitted, points of D columns; draw(n) returns a training batch (n, D)."""

    name: str  # what the names of the files start with
    title: str
    columns: list[str]
    draw: Callable[[int], Tensor]
    held_out: Tensor  # (N, D)
    test: Tensor  # (N, D)
    train: Tensor | None = None  # (N, D), the user's points
    # Where it is known: the exact distribution, and its entropy in nats.
    truth: Truth | None = None
    floor: float | None = None
    # Where it is not: a Gaussian with the points' mean and covariance.
    gaussian: MultivariateNormal | None = None
    made_from: dict = field(default_factory=dict)  # a fingerprint, plain types

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


def make_file_points(path: Path, columns: list[str], seed: int) -> Points:
    """The user's points, shuffled: 80 % to train on, 10 % held out, 10 % to test on."""
    table = read_points(path, columns)
    print("; ".join([f"{path.name}: columns {', '.join(table.names)}", *table.notes]))
    points = torch.from_numpy(table.points)
    values = hashlib.sha256(table.points.tobytes()).hexdigest()[:16]
    made_from = {"columns": table.names, "rows": len(points), "values": values}
    # float32 is twice as fast, but beside a large offset its rounding would show.
    if (points.abs().amax(0) / points.std(0)).max() < 1000:
        points = points.float()

    order = torch.randperm(len(points), generator=rng(seed, "file shuffle"))
    tenth = len(points) // 10
    sizes = [tenth, tenth, len(points) - 2 * tenth]
    held_out, test, train = points[order].split(sizes)
    generator = rng(seed, "file train")

    def draw(n: int) -> Tensor:
        return train[torch.randint(len(train), (n,), generator=generator)]

    # Files of a shape's name would otherwise be taken for the shape's.
    name = readable(path.stem)
    return Points(
        name=f"points_{name}" if name.lower() in SHAPES else name,
        title=readable(path.name).replace("$", r"\$"),
        columns=table.names,
        draw=draw,
        held_out=held_out,
        test=test,
        train=train,
        gaussian=fit_gaussian(train),
        made_from=made_from,
    )


def fit_gaussian(points: Tensor) -> MultivariateNormal:
    """The Gaussian with the mean and the covariance of points (N, D), in float64."""
    points = points.double()
    covariance = points.T.cov().reshape(points.shape[1], -1)  # a number if D is 1
    return MultivariateNormal(points.mean(0), covariance)


def score_points(flow, train: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each point in nats, (N,), and the share of training points with less."""
    log_p = evaluate(flow.log_prob, points, flow)
    of_train = evaluate(flow.log_prob, train, flow).sort().values
    return log_p, torch.searchsorted(of_train, log_p) / len(train)
