import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flows2d
from flowlib.files import UserError, load_model, save_model
from flows2d import (
    AffineCoupling,
    Flow,
    InvertibleLinear,
    MixtureBase,
    PermutationTransform,
    SplineCoupling,
    Standardize,
    permutation_flow,
    realnvp,
    spline,
)

DIMS = (1, 2, 3, 8)
BUILDERS = {"realnvp": realnvp, "permutation": permutation_flow}
# The same on a base with modes, and with splines, for what holds of any flow.
BUILDERS |= {
    f"{name}, {count} {option}": partial(build, **{option: count})
    for name, build in BUILDERS.items()
    for option, count in (("modes", 3), ("bins", 5))
}


def randomized(module, scale=0.3):
    """In float64, away from the identity that couplings start as."""
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, scale)
    return module


def layers(dim):
    mask = torch.arange(dim) % 2 if dim > 1 else torch.zeros(1)
    yield AffineCoupling(mask)
    yield AffineCoupling(torch.zeros(dim), hidden=())
    yield SplineCoupling(mask)
    yield SplineCoupling(torch.zeros(dim), hidden=(), bins=3, bound=1.0)
    yield InvertibleLinear(dim)
    yield PermutationTransform(dim)
    yield Standardize(torch.randn(dim), torch.rand(dim) + 0.5)


def check_exact(transform, dim):
    """log_det is that of the autograd Jacobian; inverse undoes forward, minus it."""
    x = torch.randn(4, dim, dtype=torch.float64)
    z, log_det = transform(x)
    assert z.shape == x.shape
    assert log_det.shape == (4,)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(
            lambda row: transform(row[None])[0][0], x[i]
        )
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(
            log_det[i].item(), abs=1e-10
        )
    back, inverse_log_det = transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dim", DIMS)
def test_each_layers_log_det_is_that_of_its_jacobian(dim):
    for layer in layers(dim):
        check_exact(randomized(layer), dim)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_a_whole_flows_log_det_is_that_of_its_jacobian(builder, dim):
    check_exact(
        randomized(
            builder(dim, layers=9, hidden=(8, 8), mean=[0.5] * dim, std=[2.0] * dim),
            0.2,
        ),
        dim,
    )


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_stack_is_exact(data):
    dim = data.draw(st.integers(1, 6), "dim")
    kinds = data.draw(
        st.lists(
            st.sampled_from(("affine", "spline", "linear", "permutation")), max_size=5
        ),
        "kinds",
    )
    stack = []
    for kind in kinds:
        if kind in ("affine", "spline"):
            mask = data.draw(
                st.lists(st.integers(0, 1), min_size=dim, max_size=dim).filter(
                    lambda bits: not all(bits)
                ),
                "mask",
            )
            coupling = AffineCoupling if kind == "affine" else SplineCoupling
            stack.append(coupling(mask, hidden=(4,)))
        elif kind == "linear":
            stack.append(InvertibleLinear(dim))
        else:
            order = data.draw(
                st.permutations(range(dim)).filter(
                    lambda p: dim == 1 or p != sorted(p)
                ),
                "permutation",
            )
            stack.append(PermutationTransform(dim, permutation=order))
    torch.manual_seed(data.draw(st.integers(0, 1000), "seed"))
    check_exact(randomized(Flow(stack, dim), 0.2), dim)


@pytest.mark.parametrize("hidden", [(), (5, 4)])
@pytest.mark.parametrize("mask", [[1, 0], [0, 0], [1, 0, 0, 1]])
def test_a_couplings_first_and_second_derivatives(mask, hidden):
    coupling = randomized(AffineCoupling(mask, hidden, bound=1.5))
    x = torch.randn(4, len(mask), dtype=torch.float64, requires_grad=True)
    parameters = dict(coupling.named_parameters())

    def outputs(x, *values):
        return torch.func.functional_call(coupling, dict(zip(parameters, values)), (x,))

    assert torch.autograd.gradcheck(outputs, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(outputs, (x, *parameters.values()))
    # where the network sees its input cut off
    far = torch.full_like(x, 50.0, requires_grad=True)
    log_det = coupling(far)[1]
    assert torch.equal(
        torch.autograd.grad(log_det.sum(), far)[0], torch.zeros_like(far)
    )


def knots(shape=(5, 3), bins=6, scale=2.0):
    sizes = scale * torch.randn(5, 2 * bins, *shape[1:]).double()
    return sizes, scale * torch.randn(5, bins - 1, *shape[1:]).double()


def test_the_splines_log_slope_is_autograds():
    x = (2 * torch.randn(5, 3, dtype=torch.float64)).requires_grad_()
    y, log_slope = spline(x, *knots(), bound=3.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (x.abs() > 3).any()
    assert (x.abs() < 3).any()
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-10)


def test_the_splines_inverse_undoes_it():
    x, sizes_and_slopes = 2 * torch.randn(5, 3, dtype=torch.float64), knots()
    y, log_slope = spline(x, *sizes_and_slopes, bound=3.0)
    back, back_log_slope = spline(y, *sizes_and_slopes, bound=3.0, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(back_log_slope, -log_slope, rtol=0, atol=1e-7)


def test_a_spline_is_continuous_increasing_and_the_identity_outside_and_for_zeros():
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64).expand(5, -1)
    sizes, slopes = (value[..., :1].expand(-1, -1, 4001) for value in knots())
    y, _ = spline(x, sizes, slopes, bound=3.0)
    assert (y.diff() > 0).all()
    assert torch.equal(y[x.abs() >= 3], x[x.abs() >= 3])
    assert (y - x).abs()[:, 499:502].max() < 0.2  # nothing jumps at the border
    identity, _ = spline(x, 0 * sizes, 0 * slopes, bound=3.0)
    torch.testing.assert_close(identity, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mask", [[1, 0], [0, 0], [0, 1, 1, 0]])
def test_a_spline_coupling_sends_each_entry_through_a_spline_of_the_others(mask):
    coupling = randomized(SplineCoupling(mask, hidden=(5, 4), bins=4, bound=2.0))
    x = 2 * torch.randn(6, len(mask), dtype=torch.float64)
    z, log_det = coupling(x)
    kept = torch.tensor(mask) == 1
    assert torch.equal(z[:, kept], x[:, kept])
    outside = (x.abs() >= 2) & ~kept
    assert torch.equal(z[outside], x[outside])
    assert (z[(x.abs() < 2) & ~kept] != x[(x.abs() < 2) & ~kept]).all()

    parameters = coupling.net(x * kept).reshape(6, 11, -1)
    sizes, slopes = parameters[:, :8], parameters[:, 8:]
    expected, log_slope = spline(x[:, ~kept], sizes, slopes, 2.0)
    assert torch.equal(z[:, ~kept], expected)
    assert torch.equal(log_det, log_slope.sum(1))


def test_couplings_start_as_the_identity_and_a_single_bin_stays_it():
    x = 3 * torch.randn(50, 3, dtype=torch.float64)
    mask = [1, 0, 0]
    start = (AffineCoupling(mask), SplineCoupling(mask))
    for coupling in (*start, randomized(SplineCoupling(mask, bins=1))):
        z, log_det = coupling.double()(x)
        torch.testing.assert_close(z, x)
        torch.testing.assert_close(log_det, torch.zeros_like(log_det))


def test_log_prob_has_a_hessian():
    flow = Flow([Standardize([1.0, 2.0], [2.0, 0.5])], 2).double()
    x = torch.randn(2, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: flow.log_prob(x[None])[0], x)
    torch.testing.assert_close(
        hessian, -torch.tensor([[0.25, 0.0], [0.0, 4.0]]).double()
    )
    flow = randomized(realnvp(2, layers=3, hidden=(8,)))
    hessian = torch.autograd.functional.hessian(lambda x: flow.log_prob(x[None])[0], x)
    torch.testing.assert_close(hessian, hessian.T)
    assert hessian.abs().min() > 0


def test_a_flow_without_transforms_is_the_standard_normal():
    x = torch.randn(5, 3)
    expected = torch.distributions.Normal(0, 1).log_prob(x).sum(1)
    torch.testing.assert_close(Flow([], 3).log_prob(x), expected)


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_density_integrates_to_one_in_the_datas_own_coordinates(builder):
    flow = randomized(
        builder(2, layers=4, hidden=(16,), mean=[3.0, -1.0], std=[2.0, 0.5]), 0.2
    )
    samples = flow.sample(2000)
    low, high = samples.min(0).values, samples.max(0).values
    axes = [
        torch.linspace(a - (b - a), b + (b - a), 600, dtype=torch.float64)
        for a, b in zip(low.tolist(), high.tolist())
    ]
    points = torch.cartesian_prod(*axes)
    area = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    with torch.no_grad():
        assert (flow.log_prob(points).exp().sum() * area).item() == pytest.approx(
            1, abs=1e-3
        )


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_samples_have_the_flows_own_density(builder):
    """E[log p] over samples equals the integral of p log p over a grid."""
    flow = randomized(builder(2, layers=4, hidden=(16,)), 0.2)
    samples = flow.sample(20_000)
    log_p = flow.log_prob(samples).detach()
    axis = torch.linspace(-15, 15, 600, dtype=torch.float64)
    with torch.no_grad():
        grid_log_p = flow.log_prob(torch.cartesian_prod(axis, axis))
    expected = (grid_log_p.exp() * grid_log_p).sum().item() * (
        axis[1] - axis[0]
    ).item() ** 2
    assert log_p.mean().item() == pytest.approx(
        expected, abs=4 * log_p.std().item() / math.sqrt(len(log_p))
    )


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_log_prob_is_finite_far_from_the_data(builder, scale):
    flow = builder(2)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, 0, scale if parameter.ndim > 1 else 0.1)
    angle = torch.linspace(0, 2 * math.pi, 64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    for radius in (1e3, 1e10):
        assert flow.log_prob(radius * circle).isfinite().all()


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_every_parameter_gets_a_gradient(builder):
    flow = randomized(builder(3, layers=4, hidden=(8, 8)))
    (-flow.log_prob(torch.randn(16, 3, dtype=torch.float64)).mean()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_weights_reload_into_a_differently_seeded_flow(builder):
    flows = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        flows.append(randomized(builder(8, layers=16, hidden=(8,))))
    flow, other = flows
    x = torch.randn(5, 8, dtype=torch.float64)
    assert not torch.equal(flow(x)[0], other(x)[0])
    other.load_state_dict(flow.state_dict())
    assert torch.equal(flow(x)[0], other(x)[0])
    assert torch.equal(flow.log_prob(x), other.log_prob(x))
    assert torch.equal(flow.inverse(x)[0], other.inverse(x)[0])


def test_what_is_fixed_travels_with_the_weights(tmp_path):
    """A stack takes over another one's masks, permutations, signs, mean and std."""

    def stack(mask, order, std, seed):
        torch.manual_seed(seed)
        return randomized(
            Flow(
                [
                    Standardize([0.0] * 3, std),
                    AffineCoupling(mask),
                    PermutationTransform(3, permutation=order),
                    InvertibleLinear(3),
                ],
                3,
            )
        )

    flow, other = (
        stack([1, 0, 0], [1, 2, 0], [1, 2, 3], 1),
        stack([0, 1, 1], [2, 1, 0], [3, 1, 1], 2),
    )
    other.load_state_dict(flow.state_dict())
    save_model(other, tmp_path / "flow.pt")
    x = torch.randn(5, 3, dtype=torch.float64)
    for model in (other, load_model(tmp_path / "flow.pt", Flow)):
        assert torch.equal(model.log_prob(x), flow.log_prob(x))
        assert torch.equal(model.inverse(x)[0], flow.inverse(x)[0])


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_flow_loads_with_the_same_results(builder, dtype, tmp_path):
    flow = builder(3, layers=5, hidden=(8, 8), mean=[1, 2, 3], std=[1, 2, 3])
    flow = randomized(flow).to(dtype)
    save_model(flow, tmp_path / "flow.pt", step=7, seed=3, metrics={"test_nll": 1.5})
    torch.manual_seed(99)
    loaded = load_model(tmp_path / "flow.pt", Flow)
    x = torch.randn(5, 3, dtype=dtype)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert loaded.sample(4).dtype == dtype
    checkpoint = torch.load(tmp_path / "flow.pt", weights_only=True)
    assert (checkpoint["step"], checkpoint["seed"], checkpoint["metrics"]) == (
        7,
        3,
        {"test_nll": 1.5},
    )
    assert [file.name for file in tmp_path.iterdir()] == ["flow.pt"]


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_a_trajectory_goes_from_data_to_latent_one_transform_at_a_time(builder):
    flow = randomized(builder(2, layers=3, hidden=(8,)))
    x = torch.randn(5, 2, dtype=torch.float64)
    states = flow.trajectory(x)
    assert len(states) == len(flow.transforms) + 1
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], flow(x)[0])
    for before, after, transform in zip(states, states[1:], flow.transforms):
        torch.testing.assert_close(transform.inverse(after)[0], before)


def test_float32_and_float64_samples_agree():
    flow = realnvp(2)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    z = torch.randn(2000, 2)
    single = flow.inverse(z)[0]
    torch.testing.assert_close(
        flow.double().inverse(z.double())[0].float(), single, rtol=0, atol=2e-4
    )


def test_sampling_is_reproducible_with_a_generator():
    flow = realnvp(2, layers=2, hidden=(8,))
    assert torch.equal(
        flow.sample(3, torch.Generator().manual_seed(5)),
        flow.sample(3, torch.Generator().manual_seed(5)),
    )


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_a_random_permutation_is_never_the_identity(dim):
    for seed in range(50):
        first, second = (
            PermutationTransform(
                dim, generator=torch.Generator().manual_seed(seed)
            ).permutation
            for _ in range(2)
        )
        assert not first.equal(torch.arange(dim))
        assert first.sort().values.equal(torch.arange(dim))
        assert first.equal(second)


def test_a_seed_gives_a_flow_its_permutations_all_from_one_stream():
    flows = [
        permutation_flow(8, layers=12, hidden=(4,), seed=seed) for seed in (1, 1, 2)
    ]
    orders = [[t.permutation.tolist() for t in flow.transforms[1::2]] for flow in flows]
    assert orders[0] == orders[1]
    assert not any(order in orders[2] for order in orders[0])
    assert len({tuple(order) for order in orders[0]}) == 11


def test_flows2d_needs_torch_alone_and_knows_its_device_and_type():
    source = Path(flows2d.__file__).read_text()
    modules = {
        line.split()[1].split(".")[0]
        for line in source.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert modules == {"collections", "math", "torch"}
    flow = realnvp(2, layers=2, hidden=(4,)).double()
    assert (flow.dtype, flow.device) == (torch.float64, torch.device("cpu"))


def test_the_linear_layer_is_the_product_of_its_factors():
    layer = InvertibleLinear(4)
    weight = layer(torch.eye(4))[0].T
    # a rotation to begin with
    torch.testing.assert_close(weight @ weight.T, torch.eye(4))
    assert layer(torch.eye(4))[1].abs().max() < 1e-5
    start = torch.randn(4, 4)
    layer = InvertibleLinear(4, start)
    torch.testing.assert_close(layer(torch.eye(4))[0].T, start)
    torch.testing.assert_close(
        layer(torch.eye(4))[1], torch.linalg.slogdet(start).logabsdet.expand(4)
    )


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: AffineCoupling([1, 1]), "mask"),
        (lambda: AffineCoupling([0, 2]), "mask"),
        (lambda: AffineCoupling([]), "mask"),
        (lambda: AffineCoupling([0, 1], hidden=(0,)), "hidden"),
        (lambda: AffineCoupling([0, 1], bound=0.0), "bound"),
        (lambda: SplineCoupling([1, 1]), "mask"),
        (lambda: SplineCoupling([0, 1], bins=0), "bins"),
        (lambda: SplineCoupling([0, 1], bins=1000), "bins must be below 1000"),
        (lambda: SplineCoupling([0, 1], bound=math.inf), "bound"),
        (lambda: realnvp(2, bins=2.5), "bins"),
        (lambda: InvertibleLinear(0), "dim"),
        (lambda: InvertibleLinear(2.0), "dim"),
        (lambda: InvertibleLinear(2, torch.eye(3)), "weight"),
        (lambda: InvertibleLinear(2, torch.ones(2, 2)), "weight"),
        (lambda: PermutationTransform(3, permutation=[0, 1]), "permutation"),
        (lambda: PermutationTransform(2, permutation=[0, 0]), "permutation"),
        (lambda: PermutationTransform(2, permutation=[0, 1]), "permutation"),
        (lambda: Standardize([0.0, 0.0], [1.0, 0.0]), "std"),
        (lambda: Standardize([0.0], [1.0, 1.0]), "mean"),
        (lambda: Standardize([0.0], [math.inf]), "std"),
        (lambda: Flow([], 0), "dim"),
        (lambda: Flow([InvertibleLinear(3)], 2), r"transforms\[0\]"),
        (lambda: MixtureBase([0.0, 1.0]), "means"),
        (lambda: MixtureBase([[0.0, math.nan]]), "means"),
        (lambda: MixtureBase([[0.0], [1.0]], torch.eye(2)), "covariances"),
        (lambda: MixtureBase([[0.0], [1.0]], weights=[1.0, 0.0]), "weights"),
        (lambda: Flow([], 3, MixtureBase([[0.0, 1.0]])), "base is for dim 2"),
        (lambda: realnvp(2, modes=0), "modes"),
        (lambda: realnvp(2, layers=0), "layers"),
        (lambda: realnvp(2, layers=1), r"layers=1 never transforms dimensions \[0\]"),
        (
            lambda: permutation_flow(2, layers=1),
            r"layers=1 never transforms dimensions \[0\]",
        ),
        (lambda: permutation_flow(8, layers=1, seed=0), "never transforms"),
        (lambda: realnvp(0), "dim"),
        (lambda: realnvp(2)(torch.zeros(3)), "x must be of shape"),
        (lambda: realnvp(2).inverse(torch.zeros(1, 3)), "z must be of shape"),
    ],
)
def test_bad_arguments_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "flow.pt"
    with pytest.raises(UserError, match="no checkpoint at .*; make it so"):
        load_model(path, Flow, hint="make it so")
    save_model(realnvp(2, layers=2, hidden=(4,)), path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["transforms"][0][1]["hidden"] = [5]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="do not fit its config"):
        load_model(path, Flow)
    checkpoint["config"]["transforms"][0][0] = "Exec"
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="its config builds no Flow"):
        load_model(path, Flow)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        load_model(path, Flow)


@pytest.mark.parametrize("make", [realnvp, permutation_flow])
@pytest.mark.parametrize("bins", [0, 4])
def test_a_flow_is_exported_with_a_free_batch_size(make, bins):
    flow = make(3, layers=4, mean=[1.0, 2.0, 3.0], bins=bins)
    free = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(
        flow, (torch.randn(7, 3),), dynamic_shapes=free
    ).module()
    x = torch.randn(50, 3)
    for found, expected in zip(exported(x), flow(x)):
        torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- a base with modes


@pytest.fixture
def mixture():
    """Three Gaussians in the plane, in float64, as torch's and as ours."""
    factors = torch.randn(3, 2, 2, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.3 * torch.eye(2)
    means = 2 * torch.randn(3, 2, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(means, covariances),
    )
    return MixtureBase(means, covariances, weights), expected


def test_a_mixtures_density_modes_and_gradient_are_torchs(mixture):
    base, expected = mixture
    z = expected.sample((200,)).requires_grad_()
    log_p = base.log_prob(z)
    torch.testing.assert_close(log_p, expected.log_prob(z))
    (gradient,) = torch.autograd.grad(log_p.sum(), z)
    (found,) = torch.autograd.grad(expected.log_prob(z).sum(), z)
    torch.testing.assert_close(gradient, found)

    each = expected.component_distribution.log_prob(z[:, None])
    posterior = (each + expected.mixture_distribution.logits).softmax(1)
    torch.testing.assert_close(base.responsibilities(z), posterior)
    torch.testing.assert_close(base.weights(), expected.mixture_distribution.probs)


def test_a_mixtures_samples_have_its_moments_and_repeat(mixture):
    base, expected = mixture
    samples = base.sample(100_000, torch.Generator().manual_seed(3))
    assert torch.equal(samples, base.sample(100_000, torch.Generator().manual_seed(3)))
    error = expected.stddev / math.sqrt(100_000)
    assert ((samples.mean(0) - expected.mean).abs() < 4 * error).all()
    torch.testing.assert_close(samples.var(0), expected.variance, rtol=0.03, atol=0)
    for mode in range(3):
        noise = torch.randn(50_000, 2, dtype=torch.float64)
        z = base.from_noise(noise, mode)
        component = expected.component_distribution
        torch.testing.assert_close(z.mean(0), component.mean[mode], atol=0.05, rtol=0)
        covariance = component.covariance_matrix[mode]
        torch.testing.assert_close(z.T.cov(), covariance, atol=0.05, rtol=0.05)


def test_in_one_dimension_a_flow_of_modes_has_a_density_with_two_tops():
    flow = realnvp(1, layers=3, hidden=(4,), modes=2, mean=[5.0], std=[2.0]).double()
    x = torch.linspace(-15, 25, 4001, dtype=torch.float64)
    with torch.no_grad():
        density = flow.log_prob(x[:, None]).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)
    tops = (density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])
    assert int(tops.sum()) == 2
