import runpy
import sys

import pytest
import torch

from flowlib.distributed import Processes, processes
from flowlib.files import ROOT

SCRIPT = """
import sys
import unittest.mock
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from flowlib.distributed import processes
from flowlib.images import datasets
from flowlib.images.datasets import load_images
from flowlib.images.glow import Glow
from flowlib.muon import muon_and_adam
from flowlib.rng import rng
from flowlib.training import TrainingState
from train_glow_mnist import Settings, train_glow

images = load_images("digits")
asked = []


def ask(dataset, folder, download=True):
    asked.append((dataset, download))
    return images


with processes(torch.device("cpu")) as group:
    print("printed by one process")
    with unittest.mock.patch.object(datasets, "load_images", ask):
        datasets.load_together(group, "auto", "nowhere")
    # The ranks start differently, and wrapping makes them equal.
    torch.manual_seed(7 + group.rank)
    glow = Glow(images.shape, images.levels, blocks=1, hidden=8, dequantizer=4)
    glow.initialize(images.train[:128], rng(0, "initialize"))
    gradients = []
    losses = []
    settings = Settings(steps=3, batch=16)
    state = TrainingState(glow, muon_and_adam(glow, lr=1e-2))
    for record in train_glow(state, images.train, settings, group):
        parts = [value.grad.flatten() for value in glow.parameters()]
        gradients.append(torch.cat(parts))
        losses.append(record["loss"])
    weights = [value.detach().flatten() for value in glow.parameters()]
    found = {
        "gradients": gradients,
        "losses": losses,
        "weights": torch.cat(weights),
        "any": [group.any(group.rank == 1), group.any(False)],
        "gathered": group.gather(group.rank),
        "asked": asked,
    }

# Linux lists the names of this process's threads there.
names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
found["left"] = [name for name in names if "gloo" in name]
torch.save(found, f"{sys.argv[2]}/{group.count}_{group.rank}.pt")
"""


def test_two_processes_stay_equal_and_take_the_steps_of_one(
    tmp_path, monkeypatch, two_processes
):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["script.py", str(ROOT), str(tmp_path)])
    runpy.run_path(str(script))
    assert two_processes(script, ROOT, tmp_path).count("printed by one process") == 1

    one = torch.load(tmp_path / "1_0.pt")
    first = torch.load(tmp_path / "2_0.pt")
    second = torch.load(tmp_path / "2_1.pt")
    assert torch.equal(first["weights"], second["weights"])
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for mine, others in zip(first["gradients"], one["gradients"]):
        assert (mine - others).norm() < 1e-3 * others.norm()
    assert first["any"] == second["any"] == [True, False]
    assert first["gathered"] == second["gathered"] == [0, 1]
    # A thread that is left can abort Python while it ends.
    assert first["left"] == second["left"] == []
    # The first process alone chooses and downloads.
    assert first["asked"] == [("auto", True)]
    assert second["asked"] == [("digits", False)]


def test_processes_share_a_batch_without_a_rest():
    batch = torch.arange(10)
    parts = [Processes(rank, 3, torch.device("cpu")).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat(parts), batch)


def test_without_torchrun_there_is_one_process():
    with processes(torch.device("cpu")) as group:
        assert group.first
        assert group.count == 1
        assert group.any(True)
        assert not group.any(False)
        assert group.mean(torch.tensor(3.0)) == 3
