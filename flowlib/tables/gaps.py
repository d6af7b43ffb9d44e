"""The gaps of tables: missing cells given the observed ones, by a flow.

A mixture of Gaussians that is close to the flow proposes fills of a row: given the
observed cells it is a mixture again, in closed form. Each fill gets the weight p / q,
the flow's density over that of the proposals. So the weighted fills follow the flow,
its modes' shares included.

Where a few fills would carry all the weight, the fills go from q to p in steps. Each
step has a density q (p / q)^t, with a larger t, up to 1. The fills are drawn anew by
their weights under it, then Hamiltonian Monte Carlo moves them. Both ways are exact in
the limit of many fills.
Sources: Neal (2001), arXiv:physics/9803008 (annealed importance sampling); Del Moral,
Doucet and Jasra (2006), doi:10.1111/j.1467-9868.2006.00553.x (with resampling).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from flowlib.inpainting.density import HoleDensity
from flowlib.rng import Streams
from flowlib.tables.hmc import sample_hmc
from flows2d import Flow, MixtureBase

PROPOSALS = 1024  # fills of a row that are weighted
POPULATION = 256  # fills that are drawn from them by their weights
ENOUGH = 128  # effective fills; with fewer, the fills go in steps
LEVELS = 64  # the most steps
WIDE = 2.0  # half of the proposals are as many times as wide, so no weight is huge
START = 3.0  # a fifth of it is the first HMC step, in standard deviations


class Filled(NamedTuple):
    """Rows (N, D) with their gaps filled, float64; observed cells are as given."""

    mean: Tensor  # (N, D)
    samples: Tensor  # (N, draws, D), equally likely
    effective: Tensor  # (N,), how many of the PROPOSALS carry the weight


@torch.no_grad()
def fill_gaps(
    flow: Flow, proposal: MixtureBase, rows: Tensor, seed: int, draws: int = 12
) -> Filled:
    """Rows with their gaps filled by what the flow expects there.

    What a row gets depends on its cells, its place and the seed, not on other rows.
    `effective` is (Σ w)² / Σ w² of a row's weights w. Where it is below ENOUGH the
    fills went in steps. A row without gaps has PROPOSALS.

    Args:
        flow: with log_prob, dtype and device.
        proposal: a mixture of the same columns, close to the flow, in float64.
        rows: (N, D), NaN where a cell is missing.
        draws: samples of each row, at most POPULATION, of which the mean is.
    Raises:
        ValueError: if the rows do not have the proposal's columns, or are infinite.

    Example:
        >>> mixture = MixtureBase(torch.tensor([[0.0, 5.0]]).double())
        >>> flow = Flow([], dim=2, base=mixture)
        >>> rows = torch.tensor([[1.0, float("nan")]])
        >>> fill_gaps(flow, mixture, rows, seed=0).mean.round().tolist()
        [[1.0, 5.0]]
    """
    if rows.shape[1:] != (proposal.dim,):
        expected = f"(N, {proposal.dim})"
        raise ValueError(f"rows must be of shape {expected}, not {tuple(rows.shape)}")

    rows = rows.double()
    found = []
    bar = tqdm(rows, "filling gaps", leave=False, delay=3, disable=None)
    for i, row in enumerate(bar):
        streams = Streams([seed], f"gaps of row {i}", rows)
        fills, effective = fill_row(flow, proposal, row, streams)
        mean = torch.where(row.isnan(), fills.mean(0), row)
        found.append((mean, fills[:draws], torch.tensor(effective)))
    return Filled(*map(torch.stack, zip(*found)))


def fill_row(
    flow: Flow, proposal: MixtureBase, row: Tensor, streams: Streams
) -> tuple[Tensor, float]:
    """POPULATION fills of a row (D,), in random order, and the effective proposals."""
    hole = row.isnan()
    (generator,) = streams.generators
    if not hole.any():
        return row.repeat(POPULATION, 1), PROPOSALS
    given, width = condition(proposal, row)

    def decode(cells: Tensor) -> Tensor:
        x = row.repeat(len(cells), 1)
        x[:, hole] = cells
        return x

    def log_weight(cells: Tensor) -> Tensor:
        log_p = flow.log_prob(decode(cells).to(flow.device, flow.dtype)).to(row)
        return (log_p - given.log_prob(cells)).nan_to_num(-1e9, neginf=-1e9)

    def log_bridge(cells: Tensor, power: float) -> Tensor:
        return given.log_prob(cells) + power * log_weight(cells)

    cells = given.sample(PROPOSALS, generator)
    level = 0
    while level < LEVELS:
        weight = log_weight(cells)
        if level == 0:
            effective = count_effective(weight).item()

        # The longest step whose weights leave enough fills.
        powers = torch.arange(1, LEVELS - level + 1) / LEVELS
        enough = count_effective(powers[:, None] * weight) >= ENOUGH
        step = max(1, int(enough.sum()))
        level += step

        cells = resample(cells, step / LEVELS * weight, streams)
        if effective < ENOUGH:
            bridge = partial(log_bridge, power=level / LEVELS)
            cells = move(bridge, cells, width, streams)

    order = torch.randperm(POPULATION, generator=generator)
    return decode(cells[order]), effective


def condition(mixture: MixtureBase, row: Tensor) -> tuple[MixtureBase, Tensor]:
    """The mixture of a row's missing cells given the others, and its modes' width.

    Each mode is in it a second time, WIDE times as wide. The width is L, (cells,
    cells), where L Lᵀ is the mean of the modes' covariances.
    """
    hole = row.isnan()
    upper = mixture.off_diagonal.triu(1) + mixture.log_diagonal.exp().diag_embed()
    inner = upper[:, hole]  # (K, cells, D)
    away = row[~hole] - mixture.means[:, ~hole]
    # (K, 1, D), what the observed cells alone add to the noise
    noise = away[:, None] @ upper[:, ~hole]
    precision = inner @ inner.mT
    narrow = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    shift = noise @ inner.mT @ narrow
    means = mixture.means[:, hole] - shift[:, 0]

    # p(mode | observed) is in proportion to p(mode, row) at the mode's best fill over
    # the height that the mode's density of the missing cells has there.
    best = row.repeat(len(means), 1)
    best[:, hole] = means
    log_share = mixture.log_joint(best).diagonal() - precision.logdet() / 2
    share = log_share.softmax(0)
    width = torch.linalg.cholesky(torch.tensordot(share, narrow, 1))

    # Wider modes know less well which of them the observed cells are from.
    shares = torch.cat([share, (log_share / WIDE**2).softmax(0)])
    both = torch.cat([narrow, WIDE**2 * narrow])
    given = MixtureBase(means.repeat(2, 1), both, shares.clamp(min=1e-9))
    return given.requires_grad_(False), width


def count_effective(log_weight: Tensor) -> Tensor:
    """(Σ w)² / Σ w²: how many equal weights are worth as much, (..., C) -> (...)."""
    return 1 / log_weight.softmax(-1).square().sum(-1)


def resample(cells: Tensor, log_weight: Tensor, streams: Streams) -> Tensor:
    """POPULATION of the fills (C, cells), each as often as its weight says.

    Even places in a sorted row of weights leave less to chance than independent draws.
    """
    order = cells[:, 0].argsort()
    ends = log_weight[order].softmax(0).cumsum(0)
    places = (torch.arange(POPULATION) + streams.rand(1)[0]) / POPULATION
    chosen = torch.searchsorted(ends, places).clamp(max=len(cells) - 1)
    return cells[order[chosen]]


def move(log_prob: Callable, cells: Tensor, width: Tensor, streams: Streams) -> Tensor:
    """Fills (C, cells), moved from these under a density."""
    # In v, where cells = L v, a mode is about as wide in all directions.
    v = torch.linalg.solve_triangular(width, cells.mT, upper=False).mT[None]
    density = HoleDensity(
        lambda v: log_prob(v @ width.mT),
        v,
        torch.ones_like(v[:, 0], dtype=torch.bool),
        unit_interval=False,
        chunk=POPULATION,
    )
    start = torch.full_like(v, START)
    v = sample_hmc(density, v, start, streams, moves=2, leapfrog=3)
    return v[0] @ width.mT
