"""The points that a flow is fitted to: a shape's, whose density is known, or those of a file."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flowlib.files import readable
from flowlib.grids import evaluate
from flowlib.rng import rng
from flowlib.toy2d import SHAPES, Checkerboard, NoisyCurves
from flowlib.user_points import read_points


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
    truth: NoisyCurves | Checkerboard | None = None  # the exact distribution, where it is known
    floor: float | None = None  # its entropy, nats
    gaussian: MultivariateNormal | None = None  # otherwise one with the points' mean and covariance

    @property
    def labels(self) -> list[str]:
        """The columns' names for a figure, in which $ begins a formula."""
        return [name.replace("$", r"\$") if self.truth is None else name for name in self.columns]


def make_shape(shape: str, noise: float, seed: int) -> Points:
    """A shape's points. Every training batch is new, so nothing can be overfitted."""
    truth, train = SHAPES[shape](noise), rng(seed, f"{shape} train")
    held_out = truth.sample(5_000, rng(seed, f"{shape} held-out"))
    test = truth.sample(20_000, rng(seed, f"{shape} test"))
    title = {"checkerboard": "a checkerboard"}.get(shape, f"two {shape}")
    draw = partial(truth.sample, generator=train)
    known = {"truth": truth, "floor": truth.entropy()}
    return Points(shape, title, ["$x_1$", "$x_2$"], draw, held_out, test, **known)


def make_file_points(path: Path, columns: list[str], seed: int) -> Points:
    """The user's points, shuffled: 80 % to train on, 10 % held out, 10 % to test on."""
    table = read_points(path, columns)
    print("; ".join([f"{path.name}: columns {', '.join(table.names)}", *table.notes]))
    points = torch.from_numpy(table.points)  # float64
    if (points.abs().amax(0) / points.std(0)).max() < 1000:
        points = points.float()  # twice as fast; with a larger offset its rounding would show
    points = points[torch.randperm(len(points), generator=rng(seed, "file shuffle"))]
    tenth, generator = len(points) // 10, rng(seed, "file train")
    held_out, test, train = points.split([tenth, tenth, len(points) - 2 * tenth])
    # Files of a shape's name would otherwise replace the files that are shipped.
    name = f"points_{path.stem}" if path.stem in SHAPES else readable(path.stem)

    def draw(n: int) -> Tensor:
        return train[torch.randint(len(train), (n,), generator=generator)]

    gaussian = MultivariateNormal(train.double().mean(0), train.double().T.cov())
    title = readable(path.name).replace("$", r"\$")
    return Points(name, title, table.names, draw, held_out, test, train, gaussian=gaussian)


def score_points(flow, train: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each point in nats, (N,), and the share of the training points with less, (N,)."""
    log_p, of_train = (evaluate(flow.log_prob, part, flow.base_mean) for part in (points, train))
    return log_p, torch.searchsorted(of_train.sort().values, log_p) / len(train)
