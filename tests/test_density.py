import math

import pytest
import torch

from flowlib.inpainting.density import HoleDensity


def coupled(x):
    """A log-density of (N, 1, 4, 4), coupled between the entries."""
    return -(x.flatten(1).cumsum(1) - 2).square().sum(1)


@pytest.fixture
def problem():
    x, mask = torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.rand(3, 1, 4, 4) < 0.5
    mask[:, 0, 0, 0] = True
    return x, mask


@pytest.mark.parametrize("unit_interval", [True, False])
def test_the_coordinate_goes_there_and_back_and_is_zero_where_x_is_observed(
    unit_interval, problem
):
    x, mask = problem
    density = HoleDensity(coupled, x, mask, unit_interval)
    fills = torch.rand(3, 5, 1, 4, 4, dtype=torch.float64)
    y = density.encode(fills)
    assert y.shape == (3, 5, 16)
    assert (y[~mask.flatten(1)[:, None].expand_as(y)] == 0).all()
    back = density.decode(y)
    torch.testing.assert_close(back, torch.where(mask[:, None], fills, x[:, None]))
    assert torch.equal(back[:, 0][~mask], x[~mask])


def test_the_jacobian_is_autograds(problem):
    density = HoleDensity(coupled, *problem)
    y = density.encode(torch.rand(3, 5, 1, 4, 4, dtype=torch.float64)).requires_grad_()
    slope = torch.autograd.grad(y.sigmoid().sum(), y)[0]
    expected = torch.where(density.hole, slope.log(), 0).sum(2)
    torch.testing.assert_close(density.log_jacobian(y), expected)


@pytest.mark.parametrize("of_x", [False, True])
@pytest.mark.parametrize("unit_interval", [True, False])
def test_value_and_gradient_are_autograds(unit_interval, of_x, problem):
    x, mask = problem
    density = HoleDensity(coupled, x, mask, unit_interval, chunk=4)
    y = density.encode(torch.rand(3, 5, 1, 4, 4, dtype=torch.float64))
    value, grad = density.value_and_grad(y, of_x)
    y.requires_grad_()
    expected = coupled(density.decode(y).flatten(0, 1)).reshape(3, 5)
    if not of_x:
        expected = expected + density.log_jacobian(y)
        torch.testing.assert_close(density(y), expected)
    torch.testing.assert_close(value, expected)
    autograd = torch.autograd.grad(expected.sum(), y)[0]
    torch.testing.assert_close(grad, torch.where(density.hole, autograd, 0))


def test_it_integrates_to_the_probability_of_what_is_observed():
    """In y as in x: log p(y) has the Jacobian that a change of coordinates needs."""

    def beta(x):  # independent Beta(2, 3)
        return (math.log(12) + x.log() + 2 * (1 - x).log()).sum(1)

    x = torch.tensor([[0.3, math.nan]], dtype=torch.float64)
    density = HoleDensity(beta, x, torch.tensor([[False, True]]))
    grid = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    y = torch.stack([torch.zeros_like(grid), grid], 1)[None]
    total = torch.trapezoid(density(y)[0].exp(), grid)
    assert total.item() == pytest.approx(12 * 0.3 * 0.7**2, rel=1e-9)


@pytest.mark.parametrize("under_the_hole", [0.0, 0.77, math.nan, math.inf])
def test_what_lies_under_the_hole_changes_nothing(under_the_hole, problem):
    x, mask = problem
    y = HoleDensity(coupled, x, mask).encode(
        torch.rand(3, 2, 1, 4, 4, dtype=torch.float64)
    )
    tampered = HoleDensity(coupled, torch.where(mask, under_the_hole, x), mask)
    for one, other in zip(
        HoleDensity(coupled, x, mask).value_and_grad(y), tampered.value_and_grad(y)
    ):
        assert torch.equal(one, other)


def test_each_fill_may_have_its_own_observed_entries(problem):
    _, mask = problem
    x = torch.rand(3, 5, 1, 4, 4, dtype=torch.float64)
    density = HoleDensity(coupled, x, mask)
    filled = density.decode(density.encode(torch.rand_like(x)))
    observed = ~mask[:, None].expand_as(x)
    assert torch.equal(filled[observed], x[observed])


def test_chunks_do_not_matter(problem):
    density = HoleDensity(coupled, *problem, chunk=4)
    y = density.encode(torch.rand(3, 5, 1, 4, 4, dtype=torch.float64))
    at_once = HoleDensity(coupled, *problem)
    torch.testing.assert_close(density.value_and_grad(y), at_once.value_and_grad(y))
    torch.testing.assert_close(density(y), at_once(y))


@pytest.mark.parametrize(
    ("x", "mask", "options", "named"),
    [
        (torch.rand(2, 3), torch.ones(2, 3), {}, "mask"),
        (torch.rand(2, 3), torch.ones(2, 4, dtype=torch.bool), {}, "mask"),
        (torch.rand(4, 2, 3), torch.ones(2, 3, dtype=torch.bool), {}, "mask"),
        (torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool), {"chunk": 0}, "chunk"),
    ],
)
def test_bad_arguments_are_named(x, mask, options, named):
    with pytest.raises(ValueError, match=named):
        HoleDensity(coupled, x, mask, **options)
