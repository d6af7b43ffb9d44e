"""What is published with the project stays as it is, whatever is run on any data."""

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flowlib.files import ROOT

MOONS = "train_moons.py --epochs 1 --steps-per-epoch 2 --layers 2 --hidden 4"
GLOW = "train_glow_mnist.py --steps 2 --blocks 1 --hidden 8 --batch 8 --dataset"
FILL = "inpaint.py --dataset digits --map-steps 0 --fills 1"
NAMES = ("realnvp", "permutation")
COMMANDS = (
    MOONS,
    f"{MOONS} --data moons.csv",
    "train_moons.py --data moons.csv --score moons.csv",
    f"{GLOW} digits",
    f"{GLOW} mnist/",
    f"{GLOW} ../{{}}/Digits",
    "train_glow_mnist.py --evaluate --dataset digits --draws 1",
    "train_glow_mnist.py --figure-only --dataset digits",
    f"{FILL} --count 1 --mask top",
    f"{FILL} --image mnist/0.png --mask top",
    "benchmarks/train_classifier.py --dataset digits --epochs 1",
)
REFUSED = (
    f"{MOONS} --checkpoint checkpoints/shipped",
    f"{GLOW} digits --checkpoint checkpoints/shipped/glow_digits.pt",
    "train_moons.py --metrics checkpoints/shipped/m.json",
)


@pytest.fixture
def clone(tmp_path, digits):
    """A copy of the project, in which nothing has run, with data of colliding names."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("flowlib", "benchmarks", "checkpoints/shipped"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("runs")
        )

    np.savetxt(
        folder / "moons.csv",
        np.random.default_rng(0).normal(size=(200, 2)),
        delimiter=",",
    )
    for name in ("mnist", "Digits"):
        (folder / name).mkdir()
        for i, image in enumerate(digits.train[:120, 0]):
            Image.fromarray((image * 15).numpy()).save(folder / name / f"{i}.png")
    return folder


def hashes(folder) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def start(clone, commands) -> subprocess.CompletedProcess:
    """Runs commands one after the other in one process, each as its script's `main`."""
    code = "import importlib, sys; sys.path.insert(0, '.')\n"
    code += "for line in sys.stdin.read().splitlines():\n"
    code += "    script, *argv = line.split()\n"
    code += "    name = script.removesuffix('.py').replace('/', '.')\n"
    code += "    print('$', line)\n"
    code += "    try: importlib.import_module(name).main(argv)\n"
    code += "    except SystemExit as stop: print('status', stop.code)\n"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=clone,
        input="\n".join(commands).format(clone.name),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_no_run_changes_what_is_shipped(clone):
    shipped = hashes(clone / "checkpoints/shipped")
    assert len(shipped) >= 5
    done = start(clone, [*COMMANDS, *REFUSED])
    assert done.returncode == 0, done.stderr
    assert hashes(clone / "checkpoints/shipped") == shipped
    assert done.stdout.count("status") == len(REFUSED), done.stdout + done.stderr
    assert done.stderr.count("is published with the project") == len(REFUSED)

    made = {
        path.name for path in (clone / "checkpoints").iterdir() if path.suffix == ".pt"
    }
    own = {f"{data}_{name}.pt" for data in ("moons", "points_moons") for name in NAMES}
    own |= {"glow_digits.pt", "glow_folder_mnist.pt", "glow_folder_Digits.pt"}
    own |= {"classifier_digits.pt"}
    assert {name for name in made if not name.endswith(".resume.pt")} == own
    figures = {path.name for path in (clone / "figures").iterdir()}
    assert {
        "folder_mnist_Gen.png",
        "digits_Gen.png",
        "folder_Digits_Gen.png",
    } <= figures
    assert not {"Gen.png", "batch_inpainting_result.png"} & figures
    assert "checkpoints/glow_digits.pt, " in done.stdout  # its own, not the shipped one


def test_without_runs_of_ones_own_the_shipped_weights_are_used(clone):
    done = start(
        clone,
        ["train_glow_mnist.py --figure-only --dataset digits", f"{FILL} --count 1"],
    )
    assert done.stdout.count("checkpoints/shipped/glow_digits.pt, 1.") == 2, done.stderr
