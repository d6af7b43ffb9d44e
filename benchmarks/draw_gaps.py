"""Draws what a flow says of cells of a table that were hidden from it.

    python -m benchmarks.draw_gaps

The table is scikit-learn's iris: four lengths of 150 flowers. A flow is fitted to nine
tenths of them as train_moons.py does it. Of the others a fifth of the cells is hidden.

Writes   figures/gaps.png
Takes    about half a minute on one CPU core
"""

import math

import torch

from benchmarks.about import add_figures_flag
from benchmarks.table_gaps import HIDDEN, ours
from flowlib.cli import Parser, one_line_errors, threads
from flowlib.files import save_figure
from flowlib.plots.tables import plot_gaps
from flowlib.rng import rng
from flowlib.tables.points import make_table_points


def parse_args(argv=None):
    parser = Parser(__doc__)
    add_figures_flag(parser)
    return parser.parse_args(argv)


@one_line_errors()
@threads(1)
def main(argv=None) -> None:
    from sklearn.datasets import load_iris

    args = parse_args(argv)
    iris = load_iris()
    names = [name.removesuffix(" (cm)") for name in iris.feature_names]
    points = make_table_points(torch.from_numpy(iris.data), 0, "iris", names)

    truth = points.test.double()
    gaps = torch.rand(truth.shape, generator=rng(0, "hidden")) < HIDDEN
    samples = ours(points, torch.where(gaps, math.nan, truth), seed=0)
    figure = plot_gaps(samples, gaps, points.train, names, truth)
    save_figure(figure, args.figures, "gaps.png")


if __name__ == "__main__":
    main()
