"""The points that a flow is fitted to: a shape's, whose density is known, or those of a file."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
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
    # the exact distribution, where it is known
    truth: NoisyCurves | Checkerboard | None = None
    floor: float | None = None  # its entropy, nats
    # otherwise one with the points' mean and covariance
    gaussian: MultivariateNormal | None = None
    # a fingerprint of the data, plain types
    made_from: dict = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The columns' names for a figure, in which $ begins a formula."""
        return [
            name.replace("$", r"\$") if self.truth is None else name
            for name in self.columns
        ]


def make_shape(shape: str, noise: float, seed: int) -> Points:
    """A shape's points. Every training batch is new, so nothing can be overfitted."""
    truth, train = SHAPES[shape](noise), rng(seed, f"{shape} train")
    held_out = truth.sample(5_000, rng(seed, f"{shape} held-out"))
    test = truth.sample(20_000, rng(seed, f"{shape} test"))
    title = {"checkerboard": "a checkerboard"}.get(shape, f"two {shape}")
    # The files of the default noise are called after the shape alone.
    name = shape if noise == NOISE else f"{shape}_noise_{noise:g}"
    return Points(
        name=name,
        title=title,
        columns=["$x_1$", "$x_2$"],
        draw=partial(truth.sample, generator=train),
        held_out=held_out,
        test=test,
        truth=truth,
        floor=truth.entropy(),
        made_from={"name": shape, "noise": noise},
    )


def make_file_points(path: Path, columns: list[str], seed: int) -> Points:
    """The user's points, shuffled: 80 % to train on, 10 % held out, 10 % to test on."""
    table = read_points(path, columns)
    print("; ".join([f"{path.name}: columns {', '.join(table.names)}", *table.notes]))
    points = torch.from_numpy(table.points)  # float64
    made_from = {"columns": table.names, "rows": len(points)}
    made_from["values"] = hashlib.sha256(table.points.tobytes()).hexdigest()[:16]
    if (points.abs().amax(0) / points.std(0)).max() < 1000:
        # twice as fast; with a larger offset its rounding would show
        points = points.float()
    points = points[torch.randperm(len(points), generator=rng(seed, "file shuffle"))]
    tenth, generator = len(points) // 10, rng(seed, "file train")
    held_out, test, train = points.split([tenth, tenth, len(points) - 2 * tenth])
    # Files of a shape's name would otherwise replace the files that are shipped.
    name = readable(path.stem)
    name = f"points_{name}" if name.lower() in SHAPES else name

    def draw(n: int) -> Tensor:
        return train[torch.randint(len(train), (n,), generator=generator)]

    gaussian = MultivariateNormal(train.double().mean(0), train.double().T.cov())
    title = readable(path.name).replace("$", r"\$")
    return Points(
        name=name,
        title=title,
        columns=table.names,
        draw=draw,
        held_out=held_out,
        test=test,
        train=train,
        gaussian=gaussian,
        made_from=made_from,
    )


def score_points(flow, train: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each point in nats, (N,), and the share of the training points with less, (N,)."""
    log_p, of_train = (evaluate(flow.log_prob, part, flow) for part in (points, train))
    return log_p, torch.searchsorted(of_train.sort().values, log_p) / len(train)
