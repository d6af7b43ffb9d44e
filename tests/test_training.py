import itertools
import runpy
import subprocess
import sys

import pytest
import torch
from torch import nn

from flowlib.files import ROOT, UserError
from flowlib.training import TrainingState, batches, generator_for, load_resume, save_resume

TWO_PROCESSES = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from flowlib.images.glow import Glow
from flowlib.images.datasets import load_images
from train_glow_mnist import train
from flowlib.distributed import processes
from flowlib.training import generator_for, TrainingState

images = load_images("digits")
with processes(torch.device("cpu")) as group:
    torch.manual_seed(7 + group.rank)  # the ranks start differently: wrapping must make them equal
    if group.count == 1:
        torch.manual_seed(7)
    glow = Glow(images.shape, images.levels, blocks=1, hidden=8, dequantiser=4)
    glow.initialise(images.train[:128], generator_for(0, 0))
    gradients, losses = [], []
    for record in train(TrainingState(glow, lr=1e-3), images.train, steps=3, batch=16, group=group):
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in glow.parameters()]))
        losses.append(record["loss"])
    weights = torch.cat([parameter.detach().flatten() for parameter in glow.parameters()])
    torch.save({"gradients": gradients, "losses": losses, "weights": weights}, f"{sys.argv[2]}/{group.count}_{group.rank}.pt")
"""


def test_two_processes_stay_equal_and_take_the_steps_of_one(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    monkeypatch.setattr(sys, "argv", ["script.py", str(ROOT), str(tmp_path)])
    runpy.run_path(str(script))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, script, ROOT, tmp_path], check=True, capture_output=True, timeout=120)
    one, first, second = (torch.load(tmp_path / name) for name in ("1_0.pt", "2_0.pt", "2_1.pt"))
    assert torch.equal(first["weights"], second["weights"])
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for mine, others in zip(first["gradients"], one["gradients"]):
        assert (mine - others).norm() < 1e-3 * others.norm()


def test_an_epoch_sees_every_example_once_and_a_resumed_run_the_same_ones():
    whole = list(itertools.islice(batches(10, 3, seed=1, step=0), 7))
    for epoch in (whole[:3], whole[3:6]):
        assert len(set(torch.cat(epoch).tolist())) == 9
    assert not torch.equal(torch.cat(whole[:3]), torch.cat(whole[3:6]))
    for step in range(7):
        assert torch.equal(next(batches(10, 3, seed=1, step=step)), whole[step])
    assert not torch.equal(next(batches(10, 3, seed=2, step=0)), whole[0])
    assert len(next(batches(4, 8, seed=0, step=0))) == 4


def test_each_step_of_each_seed_has_its_own_noise():
    draws = {torch.rand(1, generator=generator_for(seed, step)).item() for seed in range(3) for step in range(-5, 50)}
    assert len(draws) == 3 * 55


def trained(steps: int) -> TrainingState:
    torch.manual_seed(0)
    state = TrainingState(nn.Linear(2, 2), lr=0.1)
    advance(state, steps)
    return state


def advance(state: TrainingState, steps: int) -> None:
    for _ in range(steps):
        state.optimiser.zero_grad()
        state.model(torch.ones(1, 2)).square().sum().backward()
        state.optimiser.step()
        state.step += 1
        state.update_average()


def test_the_average_follows_the_weights_slowly():
    state = trained(0)
    state.average = 0.5
    state.step = 1000
    start = state.averaged.weight.clone()
    state.model.weight.data += 1
    state.update_average()
    torch.testing.assert_close(state.averaged.weight, start + 0.5)
    state.update_average()
    torch.testing.assert_close(state.averaged.weight, start + 0.75)


def test_a_resumed_state_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, interrupted = trained(9), trained(4)
    save_resume(interrupted, tmp_path / "resume.pt", {"lr": 0.1})
    torch.manual_seed(99)
    resumed = TrainingState(nn.Linear(2, 2), lr=0.1)
    assert load_resume(resumed, tmp_path / "resume.pt", {"lr": 0.1})
    advance(resumed, 5)
    for name in ("model", "averaged"):
        assert all(torch.equal(*pair) for pair in zip(getattr(whole, name).parameters(), getattr(resumed, name).parameters()))


def test_resume_files_that_cannot_be_used(tmp_path):
    state, path = trained(1), tmp_path / "resume.pt"
    assert not load_resume(state, path, {})
    save_resume(state, path, {"lr": 0.1, "seed": 0})
    with pytest.raises(UserError, match="lr 0.1, not 0.2"):
        load_resume(state, path, {"lr": 0.2, "seed": 0})
    with pytest.raises(UserError, match="damaged"):
        load_resume(TrainingState(nn.Linear(3, 3), lr=0.1), path, {"lr": 0.1, "seed": 0})


def test_a_crash_while_writing_leaves_the_last_resume_file(tmp_path, monkeypatch):
    state, path = trained(1), tmp_path / "resume.pt"
    save_resume(state, path, {})
    good = path.read_bytes()

    def crash(content, file):
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_resume(state, path, {})
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]
