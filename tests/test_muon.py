import torch
from torch import nn

from flowlib.muon import Muon, hidden_matrices, muon_and_adam, orthogonalize
from flowlib.rng import rng


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng(0, "test"), dtype=torch.float64)


def test_singular_vectors_stay_and_singular_values_come_near_one():
    for n, m in ((6, 20), (20, 6), (8, 8)):
        u, s, v = torch.linalg.svd(random(3, n, m), full_matrices=False)
        result = orthogonalize(u * torch.linspace(1, 0.01, s.shape[1]).unsqueeze(0) @ v)
        values = u.mT @ result @ v.mT  # diagonal if the singular vectors are the same
        diagonal = values.diagonal(dim1=1, dim2=2)
        assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-6
        assert diagonal.min() > 0.65
        assert diagonal.max() < 1.25


def test_rotations_of_rows_and_columns_and_the_scale_go_through():
    x = random(2, 5, 9)
    left, right = (torch.linalg.qr(random(n, n) + torch.eye(n)).Q for n in (5, 9))
    expected = left @ orthogonalize(x) @ right
    torch.testing.assert_close(orthogonalize(left @ x @ right), expected)
    torch.testing.assert_close(orthogonalize(1e3 * x), orthogonalize(x))
    assert orthogonalize(torch.zeros(1, 3, 4)).abs().max() == 0


def test_its_steps_are_those_of_torchs_muon_which_takes_matrices_alone():
    mine, theirs = (nn.Parameter(torch.eye(6, 20)) for _ in range(2))
    muon = Muon([mine], lr=0.1, momentum=0.9)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0)
    for step in range(4):
        mine.grad = theirs.grad = torch.randn(6, 20, generator=rng(step, "gradient"))
        muon.step()
        reference.step()
    # torch's computes in bfloat16.
    assert (mine - theirs).norm() < 0.02 * (theirs - torch.eye(6, 20)).norm()


def test_kernels_move_as_their_matrices_do_whatever_shares_their_shape():
    shapes = ((6, 2, 3, 3), (6, 2, 3, 3), (8, 4, 1, 1))
    kernels = [nn.Parameter(random(*shape)) for shape in shapes]
    matrices = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    for i, (kernel, matrix) in enumerate(zip(kernels, matrices)):
        kernel.grad = torch.randn(kernel.shape, generator=rng(i, "gradient")).double()
        matrix.grad = kernel.grad.flatten(1)
        Muon([matrix], lr=0.1).step()
    Muon(kernels, lr=0.1).step()
    for kernel, matrix in zip(kernels, matrices):
        torch.testing.assert_close(kernel.flatten(1), matrix)


def test_every_parameter_has_one_optimizer_and_muon_the_kernels_that_mix_channels():
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    mixing = nn.Conv2d(4, 6, 1)
    model = nn.Sequential(depthwise, mixing, nn.Linear(2, 2))
    muon, adam = (optimizer.param_groups[0] for optimizer in muon_and_adam(model, 0.1))

    assert [id(parameter) for parameter in muon["params"]] == [id(mixing.weight)]
    ids = [id(parameter) for parameter in muon["params"] + adam["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    assert (muon["lr"], adam["lr"]) == (0.1, 0.01)


def test_hidden_matrices_are_the_large_weights_of_linear_layers():
    large = nn.Linear(8, 9)
    narrow = nn.Linear(9, 4)
    model = nn.Sequential(nn.Linear(2, 8), large, narrow, nn.Conv2d(8, 8, 1))
    assert [id(weight) for weight in hidden_matrices(model)] == [id(large.weight)]
