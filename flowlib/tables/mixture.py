"""A mixture of Gaussians: what is fitted to a table first, and what a flow starts as.

Where rows are few, a flow with random weights loses to a fitted Gaussian. So a flow of
a table starts as the mixture that cross-validation chooses: the mixture is its base,
and its transforms are the identity. Training is kept only where it makes held-out
rows likelier. Source of the mixture: scikit-learn's GaussianMixture, which maximizes
the likelihood by expectation maximization.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowlib.files import UserError
from flows2d import Flow, MixtureBase, PermutationTransform, Standardize

MODES = (1, 2, 3, 5, 8, 12, 20, 30)
# What is added to each variance of standardized columns, so that no mode is thin.
ADDED = (1e-2, 1e-1, 1e-3, 1e-4)
MOST_ROWS = 10_000  # that a mixture is fitted to; of more it hardly gets better
TRIES = 100  # to draw permutations that leave no column as it is
Folds = Sequence[tuple[Tensor, Tensor]]  # rows to fit, (N, D), and rows held out


class Choice(NamedTuple):
    """What cross-validation chose; its mean NLLs of held-out rows are in nats."""

    modes: int
    added: float  # to each variance
    nll: float
    gaussian_nll: float  # of a single mode


def choose_mixture(folds: Folds, modes: Sequence[int] = MODES) -> Choice:
    """The number of modes, and what is added to their variances, for the least NLL.

    Raises UserError if no number of modes is small enough for the rows.

    Example:
        >>> rows = torch.randn(400, 2) + 10 * torch.randint(2, (400, 1))
        >>> choose_mixture([(rows[:300], rows[300:])]).modes > 1
        True
    """
    rows_to_fit = min(len(rows) for rows, _ in folds)
    if 10 * min(modes) > max(10, rows_to_fit):
        few = f"{min(modes)} modes need {10 * min(modes)} rows to fit"
        raise UserError(f"{few}, and there are {rows_to_fit}")

    nll = {}
    for added in ADDED:
        best = math.inf
        worse = 0
        for count in dict.fromkeys([1, *modes]):
            if 10 * count > max(10, rows_to_fit):
                break

            parts = []
            for rows, held_out in folds:
                mixture = mixture_flow(rows, count, added)
                with torch.no_grad():
                    parts.append(-mixture.log_prob(held_out.double()).mean().item())
            nll[count, added] = sum(parts) / len(parts)

            # More modes are hardly better after two steps in a row that were not.
            worse = 0 if nll[count, added] < best else worse + 1
            best = min(best, nll[count, added])
            if worse == 2:
                break

    gaussian_nll = min(nll[1, added] for added in ADDED)
    allowed = {key: value for key, value in nll.items() if key[0] in modes}
    count, added = min(allowed, key=allowed.get)
    return Choice(count, added, allowed[count, added], gaussian_nll)


def fit_mixture(rows: Tensor, modes: int, added: float) -> MixtureBase:
    """The mixture of standardized rows (N, D), in random order, in float64."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(modes, reg_covar=added, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(rows[:MOST_ROWS].double().numpy())
    parts = (mixture.means_, mixture.covariances_, mixture.weights_)
    return MixtureBase(*(torch.from_numpy(part) for part in parts))


def standardize(rows: Tensor) -> Standardize:
    """The transform that gives rows (N, D) mean 0 and standard deviation 1.

    It works in units from 1e-300 to 1e300, whose squares no float64 can hold.
    """
    rows = rows.double()
    reach = rows.abs().amax(0)
    std = (rows / reach).std(0) * reach
    return Standardize((rows / reach).mean(0) * reach, std)


def mixture_flow(rows: Tensor, modes: int = 1, added: float = 1e-9) -> Flow:
    """The mixture of rows (N, D) as a flow without couplings, in float64.

    By default it is a Gaussian with their mean and covariance.
    """
    scale = standardize(rows)
    base = fit_mixture(scale(rows.double())[0], modes, added)
    return Flow([scale], scale.dim, base)


def start_flow(
    build: Callable[[int], Flow], rows: Tensor, modes: int, added: float
) -> Flow:
    """A flow that is the mixture of rows (N, D) until it is trained, of their dtype.

    Args:
        build: dim -> a flow whose couplings are the identity. Its permutations are
            undone at the end, for the mixture is one of the columns as they stand.
    Raises:
        ValueError: if some column is never transformed, in TRIES tries.
    """
    start = mixture_flow(rows, modes, added)
    for attempt in range(TRIES):
        try:
            transforms = list(build(start.dim).transforms)
            break
        except ValueError:  # random permutations can miss one of many columns
            if attempt == TRIES - 1:
                raise

    order = torch.arange(start.dim)
    for transform in transforms:
        if isinstance(transform, PermutationTransform):
            order = order[transform.permutation]
    if not order.equal(torch.arange(start.dim)):
        transforms.append(PermutationTransform(start.dim, order.argsort()))
    flow = Flow([*start.transforms, *transforms], start.dim, start.base)
    return flow.to(rows.dtype)
