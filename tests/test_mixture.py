"""The mixture that a flow of a table starts as, and how it is chosen."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from flowlib.files import UserError
from flowlib.tables.mixture import (
    choose_mixture,
    fit_mixture,
    mixture_flow,
    standardize,
    start_flow,
)
from flows2d import PermutationTransform, permutation_flow, realnvp

BUILDERS = {
    "realnvp": lambda dim: realnvp(dim, 3, (8,)),
    "permutation": lambda dim: permutation_flow(dim, 6, (8,)),
}


def two_groups(count: int, dim: int = 3) -> torch.Tensor:
    """Rows of two far groups, in units that differ."""
    centers = 6.0 * torch.randint(2, (count, 1))
    return (torch.randn(count, dim) + centers) * torch.logspace(-2, 2, dim)


def test_cross_validation_finds_the_number_of_groups():
    rows = two_groups(600)
    folds = [(rows[:400], rows[400:]), (rows[200:], rows[:200])]
    choice = choose_mixture(folds, modes=(1, 2, 8))
    assert choice.modes == 2
    assert choice.nll < choice.gaussian_nll - 0.5
    # What it reports is the mean NLL of the held-out rows, by mixtures of the others.
    found = []
    for fitted, held_out in folds:
        mixture = mixture_flow(fitted, choice.modes, choice.added)
        found.append(-mixture.log_prob(held_out.double()).mean().item())
    assert choice.nll == pytest.approx(np.mean(found))


def test_a_mode_needs_ten_rows():
    rows = torch.randn(60, 2)
    assert choose_mixture([(rows[:30], rows[30:])]).modes <= 3
    with pytest.raises(
        UserError, match="4 modes need 40 rows to fit, and there are 30"
    ):
        choose_mixture([(rows[:30], rows[30:])], modes=(4,))


def test_a_given_number_of_modes_is_taken_and_the_gaussian_is_still_measured():
    rows = two_groups(300)
    folds = [(rows[:200], rows[200:])]
    choice = choose_mixture(folds, modes=(3,))
    assert choice.modes == 3
    assert choice.gaussian_nll == choose_mixture(folds, modes=(1,)).nll


def test_one_mode_is_the_gaussian_of_the_rows():
    rows = two_groups(400).double()
    exact = MultivariateNormal(rows.mean(0), rows.T.cov(correction=0))
    found = mixture_flow(rows).log_prob(rows)
    torch.testing.assert_close(found, exact.log_prob(rows), rtol=1e-6, atol=1e-6)


def test_what_is_added_widens_each_mode():
    rows = standardize(torch.randn(500, 2))(torch.randn(500, 2))[0].double()
    plain = fit_mixture(rows, 1, 0.0)
    wide = fit_mixture(rows, 1, 0.5)
    noise = torch.eye(2).double()
    for one, added in ((plain, 0.0), (wide, 0.5)):
        factor = one.from_noise(noise, 0) - one.means[0]
        covariance = factor.T @ factor - added * noise
        exact = rows.T.cov(correction=0)
        torch.testing.assert_close(covariance, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("power", [-300, -20, 20, 300])
def test_units_do_not_matter(power):
    rows = torch.randn(300, 2, dtype=torch.float64) + 3
    unit = 10.0**power
    scale = standardize(rows * unit)
    torch.testing.assert_close(scale(rows * unit)[0], standardize(rows)(rows)[0])
    log_p = mixture_flow(rows).log_prob(rows)
    in_unit = mixture_flow(rows * unit).log_prob(rows * unit)
    shift = 2 * power * np.log(10)
    torch.testing.assert_close(in_unit, log_p - shift, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_flow_starts_as_the_mixture_though_its_permutations_mix_the_columns(
    name, dim
):
    rows = two_groups(400, dim).double()
    flow = start_flow(BUILDERS[name], rows, 2, 1e-3)
    exact = mixture_flow(rows, 2, 1e-3).log_prob(rows)
    torch.testing.assert_close(flow.log_prob(rows), exact, rtol=1e-9, atol=1e-9)
    assert flow.dtype == torch.float64
    assert start_flow(BUILDERS[name], rows.float(), 2, 1e-3).dtype == torch.float32
    z, _ = flow(rows)
    torch.testing.assert_close(z, flow.transforms[0](rows)[0])  # column by column


def test_permutations_that_miss_a_column_are_drawn_anew():
    rows = torch.randn(200, 6)
    torch.manual_seed(0)
    flow = start_flow(lambda dim: permutation_flow(dim, 3, (4,)), rows, 1, 1e-3)
    permutations = [t for t in flow.transforms if isinstance(t, PermutationTransform)]
    assert len(permutations) in (2, 3)
    with pytest.raises(ValueError, match="never transforms"):
        start_flow(lambda dim: permutation_flow(dim, 1, (4,)), rows, 1, 1e-3)
