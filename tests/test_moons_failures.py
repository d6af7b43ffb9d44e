"""Conditional densities of the 2-D flows, and where their maxima stand."""

import pytest
import torch

from benchmarks.moons_failures import (
    find_conditional,
    find_modes,
    mode_around,
    normalize,
)
from flows2d import realnvp
from train_moons import Training, make_shape, train_flow


def test_conditionals_are_densities_and_map_stands_on_the_highest_mode():
    points = make_shape("moons", 0.1, 0)
    flow = realnvp(2, layers=4, hidden=(16, 16))
    training = Training(epochs=3, steps_per_epoch=50, batch=128, lr=1e-2)
    for _ in train_flow(flow, points.draw, points.held_out, training):
        pass

    places = [(0, -0.8), (0, 0.4), (1, 0.25)]
    flows = {"realnvp": flow}
    cases = [find_conditional(flows, points.truth, *place) for place in places]
    assert [case.modes for case in cases] == [1, 2, 4]

    for case in cases:
        found = case.flows["realnvp"]
        grid = torch.from_numpy(case.grid)
        for density in (case.exact, found["density"]):
            mass = torch.trapezoid(torch.from_numpy(density), grid).item()
            assert mass == pytest.approx(1, abs=1e-9)
        highest = case.grid[found["density"].argmax()].item()
        assert found["map"] == pytest.approx(highest, abs=0.01)
        assert 0 < found["kl"] < 10
        assert 0 < found["mass"] <= 1 + 1e-9


def test_a_mode_lies_between_its_valleys():
    axis = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    left = 0.3 * torch.exp(-2 * (axis + 3) ** 2)
    right = 0.7 * torch.exp(-2 * (axis - 3) ** 2)
    density = normalize((left + right).log(), axis).exp()
    assert [round(axis[i].item(), 2) for i in find_modes(density)] == [-3, 3]

    for at, mass in ((2.5, 0.7), (-3.0, 0.3)):
        mode = mode_around(density, axis, at)
        assert axis[mode][0] <= at <= axis[mode][-1]
        found = torch.trapezoid(density[mode], axis[mode]).item()
        assert found == pytest.approx(mass, abs=1e-3)
