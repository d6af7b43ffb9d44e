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
    whole = list(itertools.islice(batches(10, 3, seed=1, step=0), 7))
    for epoch in (whole[:3], whole[3:6]):
        assert len(set(torch.cat(epoch).tolist())) == 9
    assert not torch.equal(torch.cat(whole[:3]), torch.cat(whole[3:6]))
    for step in range(7):
        assert torch.equal(next(batches(10, 3, seed=1, step=step)), whole[step])
    assert not torch.equal(next(batches(10, 3, seed=2, step=0)), whole[0])
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


def test_the_average_follows_the_weights_slowly():
    state = trained(1)
    state.average, state.step = 0.5, 1000
    start = state.averaged.weight.clone()
    state.model.weight.data = start + 1
    for expected in (0.5, 0.75):
        state.update(share=0)
        torch.testing.assert_close(state.averaged.weight, start + expected)


def test_an_update_takes_its_share_of_each_optimizers_own_peak():
    state = trained(0)
    kernel, bias = state.model.weight.clone(), state.model.bias.clone()
    state.model.weight.grad, state.model.bias.grad = (
        torch.eye(2)[..., None, None],
        torch.ones(2),
    )
    # of 0.1 for Muon, whose step is near the identity, and of 0.01
    state.update(share=0.5)
    moved = (kernel - state.model.weight).flatten(1)
    assert (torch.linalg.svdvals(moved) / 0.05 - 1).abs().max() < 0.3
    torch.testing.assert_close(bias - state.model.bias, torch.full((2,), 0.005))


def test_a_resumed_state_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, interrupted = trained(9), trained(4)
    interrupted.curve, interrupted.seconds = [{"step": 4}], 1.5
    save_resume(interrupted, tmp_path / "resume.pt", {"lr": 0.1})
    torch.manual_seed(99)
    resumed = new_state()
    assert load_resume(resumed, tmp_path / "resume.pt", {"lr": 0.1})
    assert (resumed.step, resumed.curve, resumed.seconds) == (4, [{"step": 4}], 1.5)
    advance(resumed, 5)
    for name in ("model", "averaged"):
        pairs = zip(
            getattr(whole, name).parameters(), getattr(resumed, name).parameters()
        )
        assert all(torch.equal(*pair) for pair in pairs)


def test_resume_files_that_cannot_be_used(tmp_path):
    state, path = trained(1), tmp_path / "resume.pt"
    assert not load_resume(state, path, {})
    save_resume(state, path, {"lr": 0.1, "seed": 0})
    with pytest.raises(UserError, match="lr 0.1, not 0.2"):
        load_resume(state, path, {"lr": 0.2, "seed": 0})
    with pytest.raises(UserError, match="damaged"):
        load_resume(new_state(size=3), path, {"lr": 0.1, "seed": 0})


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


def test_the_curve_is_written_as_it_grows(tmp_path):
    state, path = trained(0), tmp_path / "curve.jsonl"
    for step in (1, 2):
        extend_curve(state, {"step": step}, path)
        assert [
            json.loads(line) for line in path.read_text().splitlines()
        ] == state.curve
    extend_curve(state, {"step": 3}, None)
    assert [point["step"] for point in state.curve] == [1, 2, 3]


def test_signals_ask_to_stop_and_a_second_ctrl_c_interrupts():
    heard, before = [], signal.getsignal(signal.SIGINT)
    outer = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
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


EDITS = {
    "a negative step": lambda state: state["progress"].update(step=-5),
    "a step that is no number": lambda state: state["progress"].update(
        step=float("nan")
    ),
    "more skipped than taken": lambda state: state["progress"].update(skipped=10**20),
    "a step in words": lambda state: state["progress"].update(step="4"),
    "endless seconds": lambda state: state["progress"].update(seconds=float("inf")),
    "a curve that is no list": lambda state: state["progress"].update(curve={}),
    "no progress": lambda state: state.pop("progress"),
    "NaN weights": lambda state: state["model"]["weight"].fill_(float("nan")),
    "an infinite average": lambda state: state["averaged"]["bias"].fill_(float("inf")),
    "weights of another shape": lambda state: state["model"].update(
        weight=torch.zeros(3, 3, 1, 1)
    ),
    "one optimizer only": lambda state: state["optimizers"].pop(),
    "no optimizers": lambda state: state.update(optimizers=None),
    "another momentum": lambda state: state["optimizers"][0]["param_groups"][0].update(
        momentum=0
    ),
    "a state of another shape": lambda state: state["optimizers"][0]["state"][0].update(
        momentum=torch.zeros(3, 3)
    ),
    "a NaN state": lambda state: state["optimizers"][1]["state"][0]["exp_avg"].fill_(
        float("nan")
    ),
    "a state in words": lambda state: state["optimizers"][0]["state"][0].update(
        momentum="none"
    ),
    "a state of a third parameter": lambda state: state["optimizers"][0][
        "state"
    ].update({7: {}}),
    "no state": lambda state: state["optimizers"][0]["state"].clear(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_resume_file_is_refused(edit, tmp_path):
    state, path = trained(4), tmp_path / "resume.pt"
    save_resume(state, path, {})
    content = torch.load(path)
    edit(content["state"])
    torch.save(content, path)
    fresh = new_state()
    with pytest.raises(UserError, match="is damaged"):
        load_resume(fresh, path, {})
    assert fresh.step == 0
