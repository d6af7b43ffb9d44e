"""The user's points: shuffled, split, and scored by a flow."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flowlib.files import readable
from flowlib.grids import evaluate
from flowlib.points import Points
from flowlib.rng import rng
from flowlib.tables.reader import read_points
from flowlib.toy2d import SHAPES


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
