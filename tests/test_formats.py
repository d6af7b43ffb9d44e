"""A small file of each format there was: it gives what it gave then, or is refused.

Whoever raises `FORMAT` adds a folder. The files hold what their models gave for the
inputs below.
"""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from flowlib.files import FORMAT, UserError, load_model
from flowlib.images.classifier import Classifier
from flowlib.images.glow import Glow
from flowlib.muon import muon_and_adam
from flowlib.training import TrainingState, load_resume
from flows2d import Flow

POINTS = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
IMAGES = torch.arange(128).reshape(2, 1, 8, 8) % 17
MODELS = {
    "realnvp": (Flow, lambda flow: flow.log_prob(POINTS)),
    "permutation": (Flow, lambda flow: flow.log_prob(POINTS)),
    "glow": (Glow, lambda glow: glow.log_prob((IMAGES + 0.5) / 17)),
    "classifier": (Classifier, lambda classifier: classifier(IMAGES).flatten()),
}
FORMATS = range(1, FORMAT + 1)


def file(version: int, name: str) -> Path:
    return Path(__file__).parent / f"format_{version}" / f"{name}.pt"


@pytest.mark.parametrize(("version", "name"), list(itertools.product(FORMATS, MODELS)))
@torch.no_grad()
def test_a_checkpoint_gives_what_it_gave_when_it_was_written(version, name):
    kind, evaluate = MODELS[name]
    try:
        model = load_model(file(version, name), kind)
    except UserError as error:
        if version < FORMAT and f"of format {version}" in str(error):
            return
        raise
    expected = torch.tensor(model.metrics["values"])
    torch.testing.assert_close(evaluate(model), expected, rtol=1e-5, atol=1e-4)


def test_a_resume_file_of_this_format_goes_on():
    model = nn.Conv2d(2, 3, 1)
    state = TrainingState(model, muon_and_adam(model, 0.1))
    made_from = {"name": None}  # the file is from before there were fingerprints
    assert load_resume(state, file(FORMAT, "resume"), {"seed": 5}, made_from)
    assert state.step == 2
    total = sum(value.sum().item() for value in state.averaged.state_dict().values())
    assert total == pytest.approx(0.2232260)
