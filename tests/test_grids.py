import math

import pytest
import torch

from flowlib.grids import evaluate, finite, grid, kl_divergences
from flowlib.toy2d import Checkerboard
from flows2d import Flow, MixtureBase, Standardize


class Gaussian:
    """The standard normal, as a distribution of toy2d.py."""

    noise = 0.2

    def bounds(self, sigmas):
        reach = 1.5 * sigmas
        return (-reach, reach, -reach, reach)

    def log_prob(self, x):
        return torch.distributions.Normal(0.0, 1.0).log_prob(x.double()).sum(1)


def gaussian_kl(mean, std):
    """KL(N(0, 1) || N(mean, std²)) per dimension."""
    return math.log(std) + (1 + mean**2) / (2 * std**2) - 0.5


def divergences(truth, flow):
    return kl_divergences(truth, flow.log_prob, flow.inverse, flow.base, flow)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.5), (0.3, 0.8), (0.0, 1.0)])
def test_both_kl_divergences_of_two_gaussians_are_those_of_the_closed_form(
    mean, std, dtype
):
    flow = Flow([Standardize([mean, 0.0], [std, std])], 2).to(dtype)
    truth_flow = gaussian_kl(mean, std) + gaussian_kl(0.0, std)
    # In units of the flow's std, the truth is N(-mean / std, 1 / std²).
    flow_truth = gaussian_kl(-mean / std, 1 / std) + gaussian_kl(0.0, 1 / std)
    assert divergences(Gaussian(), flow) == pytest.approx(
        (truth_flow, flow_truth), abs=1e-5
    )


class Seam(torch.nn.Module):
    """z₁ = x₁ - g tanh x₁ is nearly flat at 0, so noise near 0 is torn in two."""

    flat = 0.99  # g

    def forward(self, x):
        first = x[:, 0] - self.flat * x[:, 0].tanh()
        slope = 1 - self.flat / x[:, 0].cosh() ** 2
        return torch.stack([first, x[:, 1]], 1), slope.log()

    def inverse(self, z):
        low, high = z[:, 0] - 1, z[:, 0] + 1
        for _ in range(60):
            x = torch.stack([(low + high) / 2, z[:, 1]], 1)
            too_high = self.forward(x)[0][:, 0] > z[:, 0]
            low = torch.where(too_high, low, x[:, 0])
            high = torch.where(too_high, x[:, 0], high)
        return x, -self.forward(x)[1]


def test_a_seam_thinner_than_the_grid_of_the_noise_is_integrated():
    flow = Flow([Seam()], 2).double()
    x = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    points = torch.stack([x, torch.zeros_like(x)], 1)
    log_p = Gaussian().log_prob(points)
    log_q = flow.log_prob(points)
    # The second entry is the same in both: its density at 0 is 1 / √2π.
    width = 18 / 200_000 * math.sqrt(2 * math.pi)
    expected = (
        (log_p.exp() * (log_p - log_q)).sum().item() * width,
        (log_q.exp() * (log_q - log_p)).sum().item() * width,
    )
    assert divergences(Gaussian(), flow) == pytest.approx(expected, abs=1e-4)


def test_mass_far_outside_of_the_truth_is_counted():
    flow = Flow([Standardize([0.0, 0.0], [1e3, 1e3])], 2).double()
    found = divergences(Gaussian(), flow)[1]
    assert found == pytest.approx(2 * gaussian_kl(0.0, 1e-3), rel=1e-5)


def test_a_flow_with_mass_where_the_truth_has_none_is_infinitely_far():
    truth, flow = Checkerboard(), Flow([], 2)
    truth_flow, flow_truth = divergences(truth, flow)
    assert flow_truth is None
    # KL(truth || N(0, 1)) = log 2π + E[x² + y²] / 2 - entropy, with E[x²] = 1/3 on the
    # board
    expected = math.log(2 * math.pi) + 1 / 3 - math.log(2)
    assert truth_flow == pytest.approx(expected, abs=1e-4)


def test_a_grid_covers_its_box():
    points, area = grid((0.0, 1.0, -1.0, 2.0), 0.3)
    assert area * len(points) == pytest.approx(3)
    assert points.min(0).values.tolist() == pytest.approx([0.125, -0.85])
    assert points[0, 1] == points[1, 1]  # x runs fastest


def test_evaluate_gives_all_parts_in_order():
    points, _ = grid((0.0, 1.0, 0.0, 1.0), 0.006)  # more points than one part
    found = evaluate(lambda x: x.sum(1), points, torch.zeros(1))
    torch.testing.assert_close(found, points.sum(1), rtol=0, atol=1e-6)
    assert found.dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "is_finite"), [(1.5, True), (math.inf, False), (math.nan, False)]
)
def test_finite_is_what_json_can_hold(value, is_finite):
    assert finite(torch.tensor(value)) == (value if is_finite else None)


def test_the_reverse_kl_of_a_base_with_modes_is_the_sum_over_them():
    """Two far modes with shares 1/4 and 3/4, against the Gaussian of one of them."""
    base = MixtureBase([[-20.0, 0.0], [20.0, 0.0]], weights=[0.25, 0.75]).double()
    flow = Flow([], 2, base)

    class Truth(Gaussian):
        def log_prob(self, x):
            return base.log_prob(x.double()).detach() + 1.5 * (x[:, 0] > 0)

    found = divergences(Truth(), flow)[1]
    assert found == pytest.approx(-1.5 * 0.75, abs=1e-5)
