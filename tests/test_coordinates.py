import pytest
import torch
from torch import nn

from flowlib.inpainting.density import Streams, Target, frozen, log_jacobian, to_x, to_y, value_and_gradient


def density(x):
    """Of (N, 1, 4, 4), coupled between the entries."""
    return -(x.flatten(1).cumsum(1) - 2).square().sum(1)


@pytest.mark.parametrize("unit_interval", [True, False])
def test_the_coordinate_goes_there_and_back_and_is_zero_where_x_is_known(unit_interval):
    x, hole = torch.rand(3, 5, 16, dtype=torch.float64), torch.rand(3, 1, 16) < 0.5
    y = to_y(x, hole, unit_interval)
    assert (y[~hole.expand_as(y)] == 0).all()
    torch.testing.assert_close(to_x(y, x, hole, unit_interval), x)


def test_the_jacobian_is_autograds():
    y = torch.randn(20, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(log_jacobian(y), torch.autograd.grad(y.sigmoid().sum(), y)[0].log())


@pytest.mark.parametrize("unit_interval", [True, False])
def test_the_gradient_of_the_target_is_autograds(unit_interval):
    hole = torch.rand(2, 1, 16) < 0.5
    target = Target(density, (1, 4, 4), unit_interval, chunk=3)
    y, known = torch.randn(2, 5, 16, dtype=torch.float64) * hole, torch.rand(2, 5, 16, dtype=torch.float64)
    value, gradient = target.with_gradient(y, known, hole)
    y.requires_grad_()
    expected = torch.autograd.grad(target(y, known, hole).sum(), y)[0]
    torch.testing.assert_close(value, target(y, known, hole))
    torch.testing.assert_close(gradient, expected * hole)
    assert value_and_gradient(lambda x: x.square().sum(1), torch.ones(3, 2), 2)[1].eq(2).all()


def test_an_examples_random_numbers_depend_on_its_own_seed_alone():
    like = torch.zeros(1, dtype=torch.float64)
    together, alone = Streams([4, 7, 9], 3, like), Streams([7], 1, like)
    together.randn(torch.tensor([0, 2]), 6)  # the second example is not asked
    assert torch.equal(together.rand(torch.arange(3), 5)[1], alone.rand(torch.arange(1), 5)[0])
    assert together.rand(torch.arange(0), 5).shape == (0, 5)
    with pytest.raises(ValueError, match="seeds must be 3"):
        Streams([1], 3, like)


def test_a_frozen_model_comes_back_as_it_was_even_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[0].bias.requires_grad_(False)
    model[1].eval()

    def fails():
        with frozen(model.forward):
            assert not model.training
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert (model[0].weight.requires_grad, model[0].bias.requires_grad) == (True, False)
