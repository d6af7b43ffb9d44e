"""train_glow_mnist.py as a user runs it: small real command lines, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST

import inpaint
import train_glow_mnist
from flowlib import training
from flowlib.distributed import Processes
from flowlib.files import ROOT, UserError, lock, save_model
from flowlib.images.classifier import Classifier
from flowlib.images.datasets import load_images
from flowlib.images.glow import Glow, load_glow
from flowlib.inpainting.inpainter import Inpainter
from flowlib.muon import muon_and_adam
from flowlib.rng import rng
from flowlib.training import TrainingState
from train_glow_mnist import Settings, measure_bits, shift_images, train_glow

QUICK = ["--dataset", "digits", "--steps", 3, "--blocks", 1]
QUICK += ["--hidden", 8, "--batch", 8]
PNG = b"\x89PNG"


def run(*argv):
    train_glow_mnist.main([str(argument) for argument in argv])


def into(folder):
    return ["--figures", folder, "--metrics", folder / "metrics.json"]


def weights(path):
    return load_glow(path).state_dict()


def equal(first: dict, second: dict) -> bool:
    if first.keys() != second.keys():
        return False
    return all(torch.equal(value, second[name]) for name, value in first.items())


# ---------------------------------------------------------------- a run


def test_it_writes_figures_checkpoint_metrics_and_curve(tmp_path, capsys):
    checkpoint = ["--dataset", "digits", "--checkpoint", tmp_path / "glow.pt"]
    run(*QUICK, *into(tmp_path), *checkpoint)

    for figure in ("digits_Gen.png", "digits_glow_interpolation.png"):
        assert (tmp_path / figure).read_bytes().startswith(PNG)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["data"] == "digits"
    assert (metrics["blocks"], metrics["steps"], metrics["dequantizer"]) == (1, 3, 32)
    assert 0 < metrics["test_bits_per_dim"] < 10

    held_out = load_images("digits").held_out
    measured = Inpainter(load_glow(tmp_path / "glow.pt"), held_out)
    measured.glow.metrics = {}
    typical = metrics["held_out_log_prob"]
    assert typical == pytest.approx(measured.typical_log_prob, rel=1e-4)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    assert curve == metrics["curve"]
    assert curve[-1]["step"] == 3

    drawn = (tmp_path / "digits_Gen.png").read_bytes()
    (tmp_path / "digits_Gen.png").unlink()
    run("--figure-only", *checkpoint, "--figures", tmp_path)
    assert (tmp_path / "digits_Gen.png").read_bytes() == drawn

    capsys.readouterr()
    run("--evaluate", *checkpoint, "--draws", 3, "--metrics", tmp_path / "metrics.json")
    printed = capsys.readouterr().out
    bits = metrics["test_bits_per_dim"]
    assert printed.startswith(f"{tmp_path / 'glow.pt'}, {bits:.3f} bits/dim\n")
    assert f"test {bits:.4f} ±" in printed
    evaluated = json.loads((tmp_path / "metrics.json").read_text())
    assert evaluated["test_bits_per_dim"] == metrics["test_bits_per_dim"]
    assert evaluated["test_bits_per_dim_weighted"] < evaluated["test_bits_per_dim"]


def test_compile_compiles_the_couplings_of_the_model_in_training(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(Glow, "compile_couplings", lambda self: compiled.append(self))
    run(*QUICK, "--compile", *into(tmp_path), "--checkpoint", tmp_path / "glow.pt")
    assert len(compiled) == 1
    assert compiled[0].training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_graph_takes_the_steps_that_its_single_kernels_take(digits):
    class Single(Processes):
        def wrap(self, model, *inputs):
            return model

    settings = Settings(steps=5, blocks=2, hidden=16, precision="fp32")
    losses = []
    for kind in (Processes, Single):
        group = kind(0, 1, torch.device("cuda"))
        glow = train_glow_mnist.build_glow(digits, settings, group.device)
        state = TrainingState(glow, muon_and_adam(glow, settings.lr))
        records = train_glow(state, digits.train, settings, group)
        losses.append([record["loss"] for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_learns_a_folder_of_pictures_and_fills_holes_in_more_of_them(
    tmp_path, digits, capsys
):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i, image in enumerate(digits.train[:120, 0]):
        Image.fromarray((image * 15).numpy()).save(folder / f"{i}.png")
    places = ["--checkpoint", tmp_path / "glow_mine.pt", "--figures", tmp_path]
    run(*QUICK[2:], "--dataset", folder, *places)
    assert load_glow(tmp_path / "glow_mine.pt").metrics["data"] == str(folder)

    def fill(picture):
        argv = ["--mask", "top", "--map-steps", 0, "--fills", 2, "--image", picture]
        argv += ["--checkpoint", tmp_path / "glow_mine.pt"]
        argv += ["--output", tmp_path / "filled"]
        inpaint.main([str(argument) for argument in argv])

    fill(folder / "3.png")
    assert "samples of the flow take their place" not in capsys.readouterr().out
    folder.rename(tmp_path / "elsewhere")
    fill(tmp_path / "elsewhere" / "3.png")
    assert "samples of the flow take their place" in capsys.readouterr().out
    assert (tmp_path / "filled" / "3_mean.png").exists()


@pytest.fixture
def small_glow(digits):
    glow = Glow(digits.shape, digits.levels, blocks=1, hidden=8, dequantizer=4)
    glow.initialize(digits.train[:256], rng(0, "initialize"))
    return glow


def test_training_lowers_the_bits_of_the_weights_and_of_their_average(
    digits, small_glow
):
    before, _ = measure_bits(small_glow, digits.held_out)
    state = TrainingState(small_glow, muon_and_adam(small_glow, 0.02))
    records = list(train_glow(state, digits.train, Settings(steps=60, batch=32)))
    assert [record["step"] for record in records] == list(range(1, 61))
    assert records[-1]["skipped"] == 0
    for model in (small_glow, state.averaged):
        assert measure_bits(model, digits.held_out)[0] < before - 0.2


def test_images_are_shifted_by_whole_pixels_in_all_ways_and_repeat_their_edge():
    image = torch.arange(20, dtype=torch.uint8).reshape(1, 1, 5, 4)
    rows = torch.tensor([[0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 4]])
    columns = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3]])
    expected = image[0][:, rows[:, None, :, None], columns[None, :, None, :]]
    expected = set(map(tuple, expected.reshape(9, 20).tolist()))

    shifted = shift_images(image.expand(300, -1, -1, -1), 1, rng(0, "test"))
    assert shifted.shape == (300, 1, 5, 4)
    assert set(map(tuple, shifted.reshape(300, 20).tolist())) == expected
    assert torch.equal(shift_images(image, 0, rng(0, "test")), image)


def test_training_shifts_its_images_but_for_the_last_quarter(digits, small_glow):
    seen = []
    real = small_glow.forward
    small_glow.forward = lambda *given: seen.append(given[0]) or real(*given)
    for shift in (0, 2):
        state = TrainingState(small_glow, muon_and_adam(small_glow, 0.02))
        list(train_glow(state, digits.train, Settings(steps=8, batch=8, shift=shift)))
    same = [torch.equal(still, moved) for still, moved in zip(seen[:8], seen[8:])]
    assert same == [False] * 6 + [True] * 2


def test_steps_that_are_not_finite_change_nothing_are_counted_and_stop_in_the_end(
    digits, small_glow, monkeypatch
):
    before = {name: value.clone() for name, value in small_glow.state_dict().items()}
    real = small_glow.forward

    def broken(*given):
        return real(*given) * float("nan")

    monkeypatch.setattr(small_glow, "forward", broken)
    state = TrainingState(small_glow, muon_and_adam(small_glow, 0.02))
    steps = train_glow(state, digits.train, Settings(steps=60, batch=8))
    assert [next(steps)["skipped"] for _ in range(19)] == list(range(1, 20))
    assert equal(before, small_glow.state_dict())
    with pytest.raises(UserError, match="20 times in a row, up to step 20"):
        next(steps)


def test_a_run_goes_on_from_a_checkpoint_and_takes_its_sizes(
    tmp_path, digits, mnist, one_line_error, monkeypatch
):
    run(*QUICK, *into(tmp_path), "--checkpoint", tmp_path / "first.pt")
    first = load_glow(tmp_path / "first.pt")
    start = ["--dataset", "digits", "--batch", 8, "--start", tmp_path / "first.pt"]
    start += [*into(tmp_path), "--checkpoint", tmp_path / "second.pt"]

    run(*start, "--steps", 1, "--lr", 1e-8)
    second = load_glow(tmp_path / "second.pt")
    assert second.config == first.config
    assert second.metrics["blocks"] == 1
    assert second.metrics["started_from"] == first.metrics
    bits = [glow.metrics["test_bits_per_dim"] for glow in (first, second)]
    assert bits[0] == pytest.approx(bits[1], abs=1e-5)

    error = one_line_error(train_glow_mnist.main, *start, "--blocks", 2)
    assert "--blocks has no meaning with --start" in error
    missing = [*start, "--start", tmp_path / "none.pt"]
    assert "none.pt" in one_line_error(train_glow_mnist.main, *missing)
    monkeypatch.setattr(train_glow_mnist, "load_together", lambda *_: mnist)
    error = one_line_error(train_glow_mnist.main, *start)
    assert "first.pt is for images of 8x8 pixels and 17 grey levels" in error


# ---------------------------------------------------------------- stopped, resumed


@pytest.fixture
def stop_at(monkeypatch):
    """Has the next runs stopped by a signal while they take a step (None: by none)."""
    real = train_glow_mnist.train_glow

    def choose(step, asked=signal.SIGTERM):
        def interrupted(*args, **options):
            for record in real(*args, **options):
                if record["step"] == step:
                    signal.raise_signal(asked)
                yield record

        monkeypatch.setattr(train_glow_mnist, "train_glow", interrupted)

    return choose


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path):
    """kill -9 in the middle of a real run, which saves its state after every step."""
    argv = [*QUICK, "--steps", 50, "--figures", tmp_path, "--checkpoint"]
    run(*argv, tmp_path / "straight.pt")
    code = (
        "import train_glow_mnist as script, sys; script.SAVE_EVERY = 0; script.main()"
    )
    command = [sys.executable, "-c", code, *argv, tmp_path / "killed.pt"]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    resume_file = tmp_path / "killed.resume.pt"
    deadline = time.monotonic() + 60
    while not resume_file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed.pt").exists()
    assert 0 < torch.load(resume_file)["state"]["progress"]["step"] < 50

    run(*argv, tmp_path / "killed.pt", "--resume")
    assert equal(weights(tmp_path / "straight.pt"), weights(tmp_path / "killed.pt"))
    assert not [path.name for path in tmp_path.iterdir() if ".part" in path.name]


@pytest.mark.parametrize(
    ("asked", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_run_is_saved_and_goes_on(
    asked, status, tmp_path, stop_at, capsys
):
    argv = [*QUICK, "--steps", 8, "--figures", tmp_path, "--checkpoint"]
    run(*argv, tmp_path / "straight.pt")

    for step in (3, 5):
        stop_at(step, asked)
        with pytest.raises(SystemExit) as stop:
            run(*argv, tmp_path / "glow.pt", "--resume")
        assert stop.value.code == status
        printed = capsys.readouterr().out
        assert f"stopped at step {step} of 8: --resume continues" in printed
        assert not (tmp_path / "glow.pt").exists()

    stop_at(None)
    run(*argv, tmp_path / "glow.pt", "--resume")
    assert equal(weights(tmp_path / "straight.pt"), weights(tmp_path / "glow.pt"))


def test_a_resume_file_is_written_when_it_is_due(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        training, "save_resume", lambda state, *_: saved.append(state.step)
    )
    argv = [*QUICK, "--figures", tmp_path, "--checkpoint", tmp_path / "glow.pt"]
    run(*argv)
    assert saved == [3]
    monkeypatch.setattr(train_glow_mnist, "SAVE_EVERY", 0)
    run(*argv)
    assert saved == [3, 1, 2, 3, 3]


def test_a_resume_file_that_cannot_be_written_does_not_end_the_run(
    tmp_path, monkeypatch, stop_at, capsys
):
    def full_disk(*_):
        raise UserError("cannot write it: no space left")

    monkeypatch.setattr(training, "save_resume", full_disk)
    monkeypatch.setattr(train_glow_mnist, "SAVE_EVERY", 0)
    argv = [*QUICK, "--figures", tmp_path, "--checkpoint", tmp_path / "glow.pt"]
    run(*argv)
    assert "warning: cannot write it: no space left" in capsys.readouterr().out
    assert load_glow(tmp_path / "glow.pt").metrics["steps"] == 3

    # But what is stopped must be saved.
    stop_at(3)
    with pytest.raises(SystemExit) as stop:
        run(*argv, "--steps", 4)
    assert stop.value.code == 2
    assert "error: cannot write it" in capsys.readouterr().err


def test_a_second_run_on_one_checkpoint_is_told_who_writes_it(tmp_path, one_line_error):
    argv = [*QUICK, "--figures", tmp_path, "--checkpoint", tmp_path / "glow.pt"]
    with lock(tmp_path / "glow.pt"):
        error = one_line_error(train_glow_mnist.main, *argv)
    assert f"glow.pt is being written by process {os.getpid()} on " in error
    assert list(tmp_path.iterdir()) == []


def test_resuming_with_other_settings_or_from_a_damaged_file_is_one_line(
    tmp_path, one_line_error
):
    argv = [*QUICK, "--figures", tmp_path, "--checkpoint", tmp_path / "glow.pt"]
    run(*argv)
    error = one_line_error(train_glow_mnist.main, *argv, "--steps", 4, "--resume")
    assert "steps 3, not 4" in error

    resume_file = tmp_path / "glow.resume.pt"
    resume_file.write_bytes(resume_file.read_bytes()[:2000])
    assert "damaged" in one_line_error(train_glow_mnist.main, *argv, "--resume")


def test_the_training_command_runs_in_two_processes(tmp_path):
    argv = [*QUICK, *into(tmp_path), "--checkpoint", tmp_path / "glow.pt"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launch, ROOT / "train_glow_mnist.py", *argv]
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    assert json.loads((tmp_path / "metrics.json").read_text())["processes"] == 2
    assert load_glow(tmp_path / "glow.pt").metrics["test_images"] == 360


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([*QUICK, "--steps", -5], "--steps"),
        ([*QUICK, "--lr", 0], "--lr"),
        ([*QUICK, "--lr", "inf"], "--lr"),
        ([*QUICK, "--hidden", 10**9], "--hidden"),
        (["--dataset", "cifar"], "--dataset"),
        (["--device", "tpu"], "--device"),
        ([*QUICK, "--precision", "fp8"], "--precision"),
    ],
)
def test_bad_flags(argv, says, tmp_path, one_line_error):
    assert says in one_line_error(train_glow_mnist.main, *argv, *into(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "flag", "mode"),
    [
        (["--draws", 4], "--draws", "training"),
        (["--evaluate", "--batch", 16], "--batch", "--evaluate"),
        (["--evaluate", "--resume"], "--resume", "--evaluate"),
        (["--figure-only", "--start", "a.pt"], "--start", "--figure-only"),
        (["--evaluate", "--figure-only"], "--figure-only", "--evaluate"),
        (["--evaluate", "--figures", "elsewhere"], "--figures", "--evaluate"),
        (["--figure-only", "--steps", 1], "--steps", "--figure-only"),
        (["--figure-only", "--draws", 4], "--draws", "--figure-only"),
        (["--figure-only", "--metrics", "m.json"], "--metrics", "--figure-only"),
    ],
)
def test_flags_without_a_meaning_in_the_mode(argv, flag, mode, one_line_error):
    error = one_line_error(train_glow_mnist.main, "--dataset", "digits", *argv)
    assert f"{flag} has no meaning with {mode}" in error


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "other kind", "not a checkpoint"]
)
def test_bad_checkpoints(damage, tmp_path, tiny_glow_file, one_line_error):
    path = tmp_path / "bad.pt"
    if damage == "truncated":
        path.write_bytes(tiny_glow_file.read_bytes()[:3000])
    elif damage == "other kind":
        save_model(Classifier((1, 8, 8), width=2), path)
    elif damage == "not a checkpoint":
        torch.save([1, 2, 3], path)
    figure = tmp_path / "digits_Gen.png"
    figure.write_bytes(b"the figure of an earlier run")

    says = {
        "missing": "train_glow_mnist.py",
        "truncated": "damaged",
        "other kind": "kind 'classifier'",
        "not a checkpoint": "something else",
    }
    argv = ["--dataset", "digits", "--figure-only"]
    argv += ["--checkpoint", path, "--figures", tmp_path]
    assert says[damage] in one_line_error(train_glow_mnist.main, *argv)
    assert figure.read_bytes() == b"the figure of an earlier run"


def test_a_model_of_other_images_is_refused(
    tmp_path, mnist, tiny_glow_file, one_line_error, monkeypatch
):
    monkeypatch.setattr(train_glow_mnist, "load_together", lambda *_: mnist)
    argv = ["--figure-only", "--checkpoint", tiny_glow_file, "--figures", tmp_path]
    assert "must match" in one_line_error(train_glow_mnist.main, *argv)


@pytest.fixture
def pictures(tmp_path, digits):
    """A folder called mnist, of 120 pictures."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for i, image in enumerate(digits.train[:120, 0]):
        Image.fromarray((image * 15).numpy()).save(folder / f"{i}.png")
    return folder


def test_a_folder_that_grew_is_refused_where_test_images_must_stay_unseen(
    tmp_path, pictures, one_line_error
):
    argv = [*QUICK[2:], "--dataset", pictures, "--figures", tmp_path]
    argv += ["--checkpoint", tmp_path / "glow.pt"]
    run(*argv)
    assert (tmp_path / "folder_mnist_Gen.png").exists()
    assert not (tmp_path / "Gen.png").exists()

    Image.new("L", (8, 8), 90).save(pictures / "new.png")
    error = one_line_error(train_glow_mnist.main, *argv, "--resume")
    other = "was made from other data (files: 1 new, such as new.png)"
    assert f"glow.resume.pt {other}" in error
    argv = [*argv[argv.index("--dataset") :], "--figure-only"]
    assert f"glow.pt {other}" in one_line_error(train_glow_mnist.main, *argv)

    (pictures / "new.png").unlink()
    Image.new("L", (8, 8), 90).save(pictures / "7.png")
    assert "(other pixels)" in one_line_error(train_glow_mnist.main, *argv)


def test_an_unreachable_download_is_one_line(tmp_path, monkeypatch, one_line_error):
    # nothing listens there
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    argv = ["--dataset", "mnist", "--data-dir", tmp_path / "data", *into(tmp_path)]
    assert "--dataset digits" in one_line_error(train_glow_mnist.main, *argv)


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, one_line_error):
    (tmp_path / "file").write_text("in the way")
    places = ["--checkpoint", tmp_path / "glow.pt"]
    places += ["--figures", tmp_path / "file" / "figures"]
    assert "cannot write" in one_line_error(train_glow_mnist.main, *QUICK, *places)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_help_prints_the_docstring_from_any_folder_and_imports_nothing_slow(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train_glow_mnist
try:
    train_glow_mnist.main(["--help"])
except SystemExit:
    print({{"torchvision", "sklearn", "matplotlib"}} & sys.modules.keys())
"""

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python train_glow_mnist.py" in done.stdout
    assert "Writes" in done.stdout
    assert "Glow blocks per level (default: 6)" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
    assert list(tmp_path.iterdir()) == []
