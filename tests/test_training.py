import itertools
import json
import os
import signal

import pytest
import torch
from torch import nn

from flowlib.files import UserError
from flowlib.muon import muon_and_adam
from flowlib.training import (
    TrainingState,
    batches,
    extend_curve,
    load_resume,
    save_resume,
    stop_requests,
)


def test_an_epoch_sees_every_example_once_and_a_resumed_run_the_same_ones():
    chosen = list(itertools.islice(batches(10, 3, seed=1, step=0), 7))
    for epoch in (chosen[:3], chosen[3:6]):
        assert len(set(torch.cat(epoch).tolist())) == 9
    assert not torch.equal(torch.cat(chosen[:3]), torch.cat(chosen[3:6]))

    for step in range(7):
        assert torch.equal(next(batches(10, 3, seed=1, step=step)), chosen[step])
    assert not torch.equal(next(batches(10, 3, seed=2, step=0)), chosen[0])
    assert len(next(batches(4, 8, seed=0, step=0))) == 4


def trained(steps: int) -> TrainingState:
    torch.manual_seed(0)
    state = new_state()
    advance(state, steps)
    return state


def new_state(size: int = 2) -> TrainingState:
    """A convolution's kernel under Muon, its bias under Adam."""
    model = nn.Conv2d(size, size, 1)
    return TrainingState(model, muon_and_adam(model, lr=0.1))


def advance(state: TrainingState, steps: int) -> None:
    for _ in range(steps):
        state.model.zero_grad()
        state.model(torch.ones(1, 2, 1, 1)).square().sum().backward()
        state.step += 1
        state.update(share=0.5)


def test_the_average_follows_the_weights_slowly(monkeypatch):
    monkeypatch.setattr("flowlib.training.AVERAGE", 0.5)
    state = trained(1)
    state.step = 1000
    start = state.averaged.weight.clone()
    state.model.weight.data = start + 1
    for expected in (0.5, 0.75):
        state.update(share=0)
        torch.testing.assert_close(state.averaged.weight, start + expected)


def test_an_update_takes_its_share_of_each_optimizers_own_peak():
    state = trained(0)
    kernel = state.model.weight.clone()
    bias = state.model.bias.clone()
    state.model.weight.grad = torch.eye(2)[..., None, None]
    state.model.bias.grad = torch.ones(2)

    # Of 0.1 for Muon, whose step is near the identity, and of 0.01 for Adam.
    state.update(share=0.5)
    moved = (kernel - state.model.weight).flatten(1)
    assert (torch.linalg.svdvals(moved) / 0.05 - 1).abs().max() < 0.3
    torch.testing.assert_close(bias - state.model.bias, torch.full((2,), 0.005))


def test_a_resumed_state_goes_on_as_if_nothing_had_happened(tmp_path):
    straight = trained(9)
    interrupted = trained(4)
    interrupted.curve = [{"step": 4}]
    interrupted.seconds = 1.5
    save_resume(interrupted, tmp_path / "resume.pt", {"lr": 0.1}, {})
    torch.manual_seed(99)
    resumed = new_state()
    assert load_resume(resumed, tmp_path / "resume.pt", {"lr": 0.1}, {})
    assert (resumed.step, resumed.curve, resumed.seconds) == (4, [{"step": 4}], 1.5)

    advance(resumed, 5)
    for name in ("model", "averaged"):
        expected = getattr(straight, name).parameters()
        found = getattr(resumed, name).parameters()
        assert all(torch.equal(*pair) for pair in zip(expected, found))


def test_resume_files_that_cannot_be_used(tmp_path):
    state = trained(1)
    path = tmp_path / "resume.pt"
    assert not load_resume(state, path, {}, {})
    save_resume(state, path, {"lr": 0.1, "seed": 0}, {})
    with pytest.raises(UserError, match="lr 0.1, not 0.2"):
        load_resume(state, path, {"lr": 0.2, "seed": 0}, {})
    with pytest.raises(UserError, match="damaged"):
        load_resume(new_state(size=3), path, {"lr": 0.1, "seed": 0}, {})


def test_a_crash_while_writing_leaves_the_last_resume_file(tmp_path, monkeypatch):
    state = trained(1)
    path = tmp_path / "resume.pt"
    save_resume(state, path, {}, {})
    good = path.read_bytes()

    def crash(content, file):
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_resume(state, path, {}, {})
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


def test_the_curve_is_written_as_it_grows(tmp_path):
    state = trained(0)
    path = tmp_path / "curve.jsonl"
    for step in (1, 2):
        extend_curve(state, {"step": step}, path)
        lines = path.read_text().splitlines()
        assert [json.loads(line) for line in lines] == state.curve
    extend_curve(state, {"step": 3}, None)
    assert [point["step"] for point in state.curve] == [1, 2, 3]


def test_signals_ask_to_stop_and_a_second_ctrl_c_interrupts():
    heard = []
    before = signal.getsignal(signal.SIGINT)
    outer = signal.signal(signal.SIGTERM, lambda asked, _: heard.append(asked))

    try:
        with stop_requests() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_set()
            assert not heard
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGTERM]  # handed on, at the end
    finally:
        signal.signal(signal.SIGTERM, outer)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_handed_on_after_the_loop():
    done = []

    def loop():
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            done.append(stop.is_set())

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert done == [True]
