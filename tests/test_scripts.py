"""The scripts as a user runs them: real command lines with small numbers, and bad input."""

import copy
import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST

import inpaint
import train_glow_mnist
import train_moons
from flowlib.files import ROOT
from flowlib.grids import grid, mode_around, modes, normalised
from flowlib.images import classifier
from flowlib.images.glow import Glow, load_glow
from flowlib.inpainting.inpainter import STARTS
from flowlib.training import TrainingState
from flows2d import Flow, Standardise, load_flow, realnvp, save_flow

QUICK_MOONS = ["--epochs", 2, "--steps-per-epoch", 3, "--layers", 2, "--hidden", 8]
QUICK_GLOW = ["--dataset", "digits", "--steps", 3, "--blocks", 1, "--hidden", 8, "--batch", 8]
QUICK_INPAINT = ["--dataset", "digits", "--count", 3, "--steps", 3, "--runs", 4]
PNG = b"\x89PNG"


def run(main, *argv):
    main([str(argument) for argument in argv])


def into(folder):
    return ["--figures", folder, "--metrics", folder / "metrics.json"]


# ---------------------------------------------------------------- train_moons.py


def test_train_moons_writes_figures_checkpoints_and_metrics(tmp_path, capsys):
    run(train_moons.main, *QUICK_MOONS, *into(tmp_path), "--checkpoint", tmp_path, "--noise", 0.1)
    for figure in ("loss_plot.png", "density_contours.png", "density_error.png", "moons_conditional.png", "moons_layers.png"):
        assert (tmp_path / figure).read_bytes().startswith(PNG)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["floor"] == pytest.approx(1.0076, abs=1e-3)
    assert metrics["seed"] == 0
    assert {"torch", "normflows", "python"} <= metrics["versions"].keys()
    assert "floor" in capsys.readouterr().out
    for name in ("realnvp", "permutation"):
        flow = load_flow(tmp_path / f"moons_{name}.pt")
        nll = train_moons.evaluate(flow, train_moons.shape_points("moons", 0.1, 0))["test_nll"]
        assert metrics["models"][name]["test_nll"] == pytest.approx(nll, abs=1e-6)
        assert metrics["models"][name]["kl"] > 0


@pytest.mark.parametrize("shape", ["circles", "spirals", "checkerboard"])
def test_train_moons_fits_other_shapes_without_touching_the_moons_files(shape, tmp_path):
    run(train_moons.main, *QUICK_MOONS, "--data", shape, "--noise", 0.1, *into(tmp_path), "--checkpoint", tmp_path)
    files = {path.name for path in tmp_path.iterdir()} - {"metrics.json"}
    assert files == {
        f"{shape}_{name}"
        for name in ("loss_plot.png", "density_contours.png", "density_error.png", "layers.png", "realnvp.pt", "permutation.pt")
    }
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["models"]["realnvp"]["kl"] > 0


def test_several_seeds_give_mean_and_spread_and_the_first_ones_figures(tmp_path, capsys):
    quick = [*QUICK_MOONS, "--noise", 0.1]
    run(train_moons.main, *quick, "--seeds", 2, *into(tmp_path), "--checkpoint", tmp_path)
    two = json.loads((tmp_path / "metrics.json").read_text())
    run(train_moons.main, *quick, "--seed", 1, *into(tmp_path / "b"), "--checkpoint", tmp_path / "b")
    second = json.loads((tmp_path / "b" / "metrics.json").read_text())
    kl = sorted([two["models"]["realnvp"]["kl"], second["models"]["realnvp"]["kl"]])
    spread = two["spread"]["realnvp"]["kl"]
    assert [spread["min"], spread["max"]] == pytest.approx(kl, rel=1e-6)
    assert spread["mean"] == pytest.approx(sum(kl) / 2, rel=1e-6)
    assert "over 2 seeds" in capsys.readouterr().out


def test_kl_estimators_agree_on_a_model_whose_kl_is_known():
    """A Gaussian pretends to be a wider one: KL(N(0, 1) || N(0, s²)) = log s + 1 / (2 s²) - 1/2 per dimension."""

    class Gaussian:
        noise = 0.3

        def __init__(self, std):
            self.normal = torch.distributions.Normal(0.0, std)

        def log_prob(self, x):
            return self.normal.log_prob(x.double()).sum(1)

    truth, std = Gaussian(1.0), 1.5
    flow = Flow([Standardise([0.0, 0.0], [std, std])], 2)
    test = torch.randn(20_000, 2)
    points = train_moons.Points("gaussian", "a Gaussian", None, test, test, truth)
    expected = 2 * (math.log(std) + 1 / (2 * std**2) - 0.5)
    figures = train_moons.evaluate(flow, points)
    assert figures["kl"] == pytest.approx(expected, abs=4 * figures["kl_se"])
    where, area = grid((-8, 8, -8, 8), 0.05)
    log_truth = truth.log_prob(where)
    on_grid = (log_truth.exp() * (log_truth - flow.log_prob(where.float()).double())).sum().item() * area
    assert on_grid == pytest.approx(expected, abs=1e-5)


def test_conditionals_are_densities_and_map_stands_on_the_highest_mode():
    points = train_moons.shape_points("moons", 0.1, 0)
    flow = realnvp(2, layers=4, hidden=(16, 16))
    for _ in train_moons.train(flow, points.draw, points.held_out, epochs=4, steps_per_epoch=50, batch=256, lr=1e-2):
        pass
    one, two, four = train_moons.conditionals({"realnvp": flow}, points.truth, [(0, -0.8), (0, 0.4), (1, 0.25)])
    assert [one["modes"], two["modes"], four["modes"]] == [1, 2, 4]
    for case in (one, two, four):
        found = case["flows"]["realnvp"]
        for density in (case["exact"], found["density"]):
            assert torch.trapezoid(torch.from_numpy(density), torch.from_numpy(case["grid"])).item() == pytest.approx(1, abs=1e-9)
        assert found["map"] == pytest.approx(case["grid"][found["density"].argmax()].item(), abs=0.01)
        assert 0 < found["kl"] < 10
        assert 0 < found["mass"] <= 1 + 1e-9


def test_a_mode_lies_between_its_valleys():
    axis = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    density = 0.3 * torch.exp(-((axis + 3) ** 2) * 2) + 0.7 * torch.exp(-((axis - 3) ** 2) * 2)
    density = normalised(density.log(), axis).exp()
    assert [round(axis[i].item(), 2) for i in modes(density)] == [-3, 3]
    for at, mass in ((2.5, 0.7), (-3.0, 0.3)):
        mode = mode_around(density, axis, at)
        assert axis[mode][0] <= at <= axis[mode][-1]
        assert torch.trapezoid(density[mode], axis[mode]).item() == pytest.approx(mass, abs=1e-3)


def test_the_same_seed_gives_the_same_moons(tmp_path):
    nll = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        run(train_moons.main, *QUICK_MOONS, "--noise", 0.1, *into(folder), "--checkpoint", folder, "--seed", 4)
        nll.append(json.loads((folder / "metrics.json").read_text())["models"]["realnvp"]["test_nll"])
    assert nll[0] == nll[1]


def test_training_gets_better_and_keeps_the_best_held_out_epoch():
    points = train_moons.shape_points("moons", 0.1, 0)
    flow = realnvp(2, layers=4, hidden=(16, 16))
    records = list(train_moons.train(flow, points.draw, points.held_out, epochs=6, steps_per_epoch=50, batch=128, lr=1e-2))
    assert [record["step"] for record in records] == list(range(1, 301))
    held_out = [record["held_out_nll"] for record in records if "held_out_nll" in record]
    assert len(held_out) == 6
    assert held_out[-1] < held_out[0] - 0.2
    assert -flow.log_prob(points.held_out).mean().item() == pytest.approx(min(held_out), abs=1e-6)


def test_parameters_as_one_vector_train_as_they_do_one_by_one(tmp_path):
    flows = []
    for together in (False, True):
        torch.manual_seed(0)
        flow = realnvp(2, layers=3, hidden=(8,))
        parameters = list(flow.parameters())
        vectors = [train_moons.as_one_vector(parameters)] if together else parameters
        optimiser = torch.optim.Adam(vectors, lr=1e-2)
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            optimiser.zero_grad(set_to_none=not together)
            (-flow.log_prob(x).mean()).backward()
            torch.nn.utils.clip_grad_norm_(vectors, 1.0)
            optimiser.step()
        flows.append(flow)
    apart, flow = flows
    torch.testing.assert_close(flow.log_prob(x), apart.log_prob(x))
    flow.load_state_dict(apart.state_dict())
    assert torch.equal(vectors[0], torch.cat([parameter.flatten() for parameter in flow.parameters()]))  # still one and the same
    twin = copy.deepcopy(flow)
    save_flow(flow, tmp_path / "flow.pt")
    with torch.no_grad():
        vectors[0].zero_()
    for kept in (twin, load_flow(tmp_path / "flow.pt")):
        assert torch.equal(kept.log_prob(x), apart.log_prob(x))


@pytest.mark.parametrize("kind", ["npy", "csv", "csv with a header"])
def test_train_moons_fits_the_users_own_points(kind, tmp_path):
    points = np.random.default_rng(0).normal([100.0, -3.0], [20.0, 0.1], size=(300, 2))
    if kind == "npy":
        path = tmp_path / "mine.npy"
        np.save(path, points)
    else:
        path = tmp_path / "mine.csv"
        np.savetxt(path, points, delimiter=",", header="a,b" if "header" in kind else "", comments="")
    run(train_moons.main, *QUICK_MOONS, "--data", path, *into(tmp_path), "--checkpoint", tmp_path)
    assert (tmp_path / "mine_loss_plot.png").read_bytes().startswith(PNG)
    assert (tmp_path / "mine_density_contours.png").read_bytes().startswith(PNG)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["floor"] is None
    assert "kl" not in metrics["models"]["realnvp"]
    # standardised inside: even untrained, the density speaks the data's own coordinates
    samples = load_flow(tmp_path / "mine_realnvp.pt").sample(500)
    assert samples.mean(0).tolist() == pytest.approx([100, -3], rel=0.1)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.npy", None, "No such file"),
        ("points.txt", "1,2\n", ".npy or .csv"),
        ("nan.csv", "1,2\n" * 150 + "3,nan\n", "first in row 151"),
        ("three.csv", "1,2,3\n" * 150, "two columns"),
        ("words.csv", "a,b\nc,d\n", "cannot read points"),
        ("few.csv", "1,2\n3,4\n", "at least 100"),
        ("constant.csv", "1,2\n1,3\n" * 60, "constant"),
        ("broken.npy", "not a numpy file", "cannot read points"),
    ],
)
def test_points_that_cannot_be_used(name, content, says, tmp_path, one_line_error):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert says in one_line_error(train_moons.main, "--data", tmp_path / name, "--figures", tmp_path / "f", "--checkpoint", tmp_path / "c")
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "c").exists()


def test_a_learning_rate_that_explodes_is_reported(tmp_path, one_line_error):
    error = one_line_error(train_moons.main, *QUICK_MOONS, "--epochs", 30, "--lr", 1e12, *into(tmp_path), "--checkpoint", tmp_path)
    assert "lower --lr" in error
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- train_glow_mnist.py


def weights(path):
    return load_glow(path).state_dict()


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_train_glow_writes_figures_checkpoint_metrics_and_curve(tmp_path, capsys):
    checkpoint = ["--dataset", "digits", "--checkpoint", tmp_path / "glow.pt"]
    run(train_glow_mnist.main, *QUICK_GLOW, *into(tmp_path), *checkpoint)
    for figure in ("Gen.png", "glow_interpolation.png"):
        assert (tmp_path / figure).read_bytes().startswith(PNG)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["data"] == "digits"
    assert 0 < metrics["test_bits_per_dim"] < 10
    curve = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert curve == metrics["curve"]
    assert curve[-1]["step"] == 3

    drawn = (tmp_path / "Gen.png").read_bytes()
    (tmp_path / "Gen.png").unlink()
    run(train_glow_mnist.main, "--figure-only", *checkpoint, "--figures", tmp_path)
    assert (tmp_path / "Gen.png").read_bytes() == drawn
    capsys.readouterr()
    run(train_glow_mnist.main, "--evaluate", *checkpoint, "--draws", 3, *into(tmp_path))
    assert f"test {metrics['test_bits_per_dim']:.4f} ±" in capsys.readouterr().out
    evaluated = json.loads((tmp_path / "metrics.json").read_text())
    assert evaluated["test_bits_per_dim_weighted"] < evaluated["test_bits_per_dim"] == metrics["test_bits_per_dim"]


def test_glow_training_lowers_the_bits_of_the_weights_and_of_their_average(digits):
    glow = Glow(digits.shape, digits.levels, blocks=1, hidden=8, dequantiser=4)
    glow.initialise(digits.train[:256])
    before = train_glow_mnist.evaluate(glow, digits.held_out)["bits_per_dim"]
    state = TrainingState(glow, lr=5e-3)
    records = list(train_glow_mnist.train(state, digits.train, steps=60, batch=32))
    assert [record["step"] for record in records] == list(range(1, 61))
    assert records[-1]["skipped"] == 0
    for model in (glow, state.averaged):
        assert train_glow_mnist.evaluate(model, digits.held_out)["bits_per_dim"] < before - 0.2


def test_steps_that_are_not_finite_change_nothing_are_counted_and_stop_in_the_end(digits, monkeypatch):
    glow = Glow(digits.shape, digits.levels, blocks=1, hidden=8, dequantiser=4)
    glow.initialise(digits.train[:256])
    before = {name: value.clone() for name, value in glow.state_dict().items()}
    real = glow.forward
    monkeypatch.setattr(glow, "forward", lambda images, noise: real(images, noise) * float("nan"))
    steps = train_glow_mnist.train(TrainingState(glow, lr=5e-3), digits.train, steps=60, batch=8)
    assert [next(steps)["skipped"] for _ in range(19)] == list(range(1, 20))
    assert equal(before, glow.state_dict())
    with pytest.raises(train_glow_mnist.UserError, match="20 times in a row, up to step 20"):
        next(steps)


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path):
    """kill -9 in the middle of a real run that writes a resume file after every step."""
    argv = [*QUICK_GLOW, "--steps", 200, "--save-minutes", 0, "--figures", tmp_path, "--checkpoint"]
    run(train_glow_mnist.main, *argv, tmp_path / "whole.pt")
    command = [sys.executable, ROOT / "train_glow_mnist.py", *argv, tmp_path / "killed.pt"]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed.resume.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed.pt").exists()
    assert 0 < torch.load(tmp_path / "killed.resume.pt")["state"]["progress"]["step"] < 200
    run(train_glow_mnist.main, *argv, tmp_path / "killed.pt", "--resume")
    assert equal(weights(tmp_path / "whole.pt"), weights(tmp_path / "killed.pt"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_goes_on(number, tmp_path, monkeypatch, capsys):
    argv = [*QUICK_GLOW, "--steps", 8, "--figures", tmp_path, "--checkpoint"]
    run(train_glow_mnist.main, *argv, tmp_path / "whole.pt")

    def interrupted(*args, **options):
        for record in real(*args, **options):
            if record["step"] == 5:
                signal.raise_signal(number)
            yield record

    real = train_glow_mnist.train
    monkeypatch.setattr(train_glow_mnist, "train", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(train_glow_mnist.main, *argv, tmp_path / "glow.pt")
    assert stop.value.code == 130
    assert "at step 5 of 8: --resume goes on" in capsys.readouterr().out
    assert not (tmp_path / "glow.pt").exists()
    monkeypatch.setattr(train_glow_mnist, "train", real)
    run(train_glow_mnist.main, *argv, tmp_path / "glow.pt", "--resume")
    assert equal(weights(tmp_path / "whole.pt"), weights(tmp_path / "glow.pt"))


def test_max_minutes_end_a_run_with_its_schedule_intact(tmp_path, capsys):
    argv = [*QUICK_GLOW, "--figures", tmp_path, "--checkpoint"]
    run(train_glow_mnist.main, *argv, tmp_path / "whole.pt")
    for step in (1, 2):
        run(train_glow_mnist.main, *argv, tmp_path / "glow.pt", "--resume", "--max-minutes", 0)
        assert f"at step {step} of 3" in capsys.readouterr().out
        assert not (tmp_path / "glow.pt").exists()
    run(train_glow_mnist.main, *argv, tmp_path / "glow.pt", "--resume")
    assert equal(weights(tmp_path / "whole.pt"), weights(tmp_path / "glow.pt"))


def test_resuming_with_other_settings_or_from_a_damaged_file_is_one_line(tmp_path, one_line_error):
    argv = [*QUICK_GLOW, "--figures", tmp_path, "--checkpoint", tmp_path / "glow.pt"]
    run(train_glow_mnist.main, *argv, "--max-minutes", 0)
    assert "steps 3, not 4" in one_line_error(train_glow_mnist.main, *argv, "--steps", 4, "--resume")
    resume_file = tmp_path / "glow.resume.pt"
    resume_file.write_bytes(resume_file.read_bytes()[:2000])
    assert "damaged" in one_line_error(train_glow_mnist.main, *argv, "--resume")


def test_the_training_command_runs_in_two_processes(tmp_path):
    argv = [*QUICK_GLOW, "--figures", tmp_path, "--metrics", tmp_path / "metrics.json", "--checkpoint", tmp_path / "glow.pt"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, ROOT / "train_glow_mnist.py"]
    subprocess.run([str(word) for word in [*launch, *argv]], check=True, capture_output=True, timeout=120)
    assert json.loads((tmp_path / "metrics.json").read_text())["processes"] == 2
    assert load_glow(tmp_path / "glow.pt").metrics["test_images"] == 360


# ---------------------------------------------------------------- inpaint.py


def test_inpaint_writes_figure_and_metrics(tmp_path, tiny_glow_file, capsys):
    run(inpaint.main, *QUICK_INPAINT, "--checkpoint", tiny_glow_file, *into(tmp_path))
    assert (tmp_path / "batch_inpainting_result.png").read_bytes().startswith(PNG)
    masks = json.loads((tmp_path / "metrics.json").read_text())["masks"]
    assert list(masks) == ["square:4", "noise:0.5"]
    for figures in masks.values():
        assert figures["images"] == 3
        assert sum(figures["map"]["won_by"].values()) == 3
        assert figures["map"]["log_prob"] >= max(row["log_prob"] for row in figures["starts"].values())
        assert figures["mean"]["hole_mse"] <= figures["sample"]["hole_mse"]
        assert figures["coverage_50"] <= figures["coverage_95"]
    assert "hole PSNR" in capsys.readouterr().out


def test_the_flows_own_samples_need_no_data_set(tmp_path, tiny_glow_file, monkeypatch):
    monkeypatch.setattr(inpaint, "load_images", None)
    run(inpaint.main, *QUICK_INPAINT, "--source", "samples", "--mask", "top", "--checkpoint", tiny_glow_file, *into(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text())["masks"]["top"]["images"] == 3


def test_two_processes_fill_what_one_does(tmp_path, tiny_glow_file):
    flags = [*QUICK_INPAINT, "--mask", "left", "--checkpoint", tiny_glow_file, "--precision", "fp32"]
    run(inpaint.main, *flags, "--figures", tmp_path / "one", "--metrics", tmp_path / "one.json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, ROOT / "inpaint.py"]
    argv = [*launch, *flags, "--figures", tmp_path / "two", "--metrics", tmp_path / "two.json"]
    subprocess.run([str(word) for word in argv], check=True, capture_output=True, timeout=120)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["masks"]["left"] for name in ("one", "two"))
    assert two["images"] == 3
    for row in ("map", "mean"):
        assert two[row]["hole_mse"] == pytest.approx(one[row]["hole_mse"], abs=0.02)


def test_a_picture_of_ones_own_is_filled_with_one_command(tmp_path, tiny_glow_file):
    folder, output = tmp_path / "pictures", tmp_path / "filled"
    folder.mkdir()
    for name in ("one", "two"):
        Image.fromarray(np.full((40, 40), 20, dtype=np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = ["--dataset", "digits", "--steps", 2, "--runs", 4, "--checkpoint", tiny_glow_file, "--output", output]
    run(inpaint.main, "--image", folder, "--mask", tmp_path / "mask.png", *flags)
    written = {path.name for path in output.iterdir()}
    for name in ("one", "two"):
        assert {f"{name}{end}.png" for end in ("", "_mean", "_map", "_uncertainty", "_sample_1", "_sample_4")} <= written
    numbers = json.loads((output / "results.json").read_text())["one"]
    assert "resized from 40x40 to 8x8" in numbers["notes"]
    assert math.isfinite(numbers["log_prob_missing_given_known"])
    assert Image.open(output / "one_mean.png").size == (8, 8)


def test_fills_keep_known_pixels_and_never_look_under_the_hole(tiny_glow_file, digits):
    glow, seeds = load_glow(tiny_glow_file), [0, 1, 2, 3]
    truth, mask = digits.test[:4], inpaint.masks_for("square:4", 4, digits.shape, 0)
    options = inpaint.references(glow, digits.train) | dict(starts=list(STARTS), steps=5, runs=2, particles=2)
    found = inpaint.fill(glow, digits.train, torch.where(mask, 0, truth), mask, seeds, **options)
    assert torch.equal(found["map"][~mask], truth[~mask])
    assert torch.equal(found["samples"].transpose(0, 1)[:, ~mask], truth[~mask].expand(found["samples"].shape[1], -1))
    again = inpaint.fill(glow, digits.train, torch.where(mask, 0, truth), mask, seeds, **options)
    for key, value in found.items():
        assert torch.equal(value, again[key]), key


# ---------------------------------------------------------------- classifier.py


def test_the_classifier_learns_the_digits_and_comes_back_from_its_file(tmp_path, digits):
    run(classifier.main, "--dataset", "digits", "--epochs", 8, "--checkpoint", tmp_path / "c.pt", "--metrics", tmp_path / "m.json")
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["test_accuracy"] > 0.8
    model = classifier.load_classifier(tmp_path / "c.pt")
    assert classifier.accuracy(model, digits.test, digits.test_labels) == pytest.approx(metrics["test_accuracy"])


# ---------------------------------------------------------------- bad input, all scripts


@pytest.mark.parametrize(
    ("main", "argv", "says"),
    [
        (inpaint.main, [*QUICK_INPAINT, "--mask", "square:9"], "side must be 1 ... 8"),
        (inpaint.main, [*QUICK_INPAINT, "--mask", "noise:1.5"], "fraction must be in [0, 1]"),
        (inpaint.main, [*QUICK_INPAINT, "--mask", "circle"], "square:SIDE"),
        (inpaint.main, ["--image", "a.png", "--dataset", "digits"], "needs one --mask"),
        (inpaint.main, [*QUICK_INPAINT, "--steps", -1], "--steps"),
        (inpaint.main, [*QUICK_INPAINT, "--starts", "truth"], "--starts"),
        (train_glow_mnist.main, [*QUICK_GLOW, "--steps", -5], "--steps"),
        (train_glow_mnist.main, [*QUICK_GLOW, "--lr", 0], "--lr"),
        (train_glow_mnist.main, ["--dataset", "cifar"], "--dataset"),
        (train_glow_mnist.main, ["--device", "tpu"], "--device"),
        (train_moons.main, ["--epochs", 0], "--epochs"),
        (train_moons.main, ["--noise", "much"], "--noise"),
        (train_moons.main, ["--layers", 1], "--layers"),
    ],
)
def test_bad_flags(main, argv, says, tmp_path, one_line_error):
    assert says in one_line_error(main, *argv, *into(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [inpaint.main, train_glow_mnist.main], ids=["inpaint", "train_glow_mnist"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "other kind", "not a checkpoint"])
def test_bad_checkpoints(script, damage, tmp_path, tiny_glow_file, one_line_error):
    path = tmp_path / "bad.pt"
    if damage == "truncated":
        path.write_bytes(tiny_glow_file.read_bytes()[:3000])
    elif damage == "other kind":
        save_flow(realnvp(2, layers=2, hidden=(4,)), path)
    elif damage == "not a checkpoint":
        torch.save([1, 2, 3], path)
    figure = tmp_path / ("Gen.png" if script is train_glow_mnist.main else "batch_inpainting_result.png")
    figure.write_bytes(b"the figure of an earlier run")
    error = one_line_error(
        script,
        "--dataset",
        "digits",
        *(["--figure-only"] if script is train_glow_mnist.main else []),
        "--checkpoint",
        path,
        *into(tmp_path),
    )
    says = {"missing": "train_glow_mnist.py", "truncated": "damaged", "other kind": "kind 'flow'", "not a checkpoint": "something else"}
    assert says[damage] in error
    assert figure.read_bytes() == b"the figure of an earlier run"


def test_a_model_of_other_images_is_refused(tmp_path, mnist, tiny_glow_file, one_line_error, monkeypatch):
    monkeypatch.setattr(inpaint, "load_images", lambda *_: mnist)
    error = one_line_error(inpaint.main, "--checkpoint", tiny_glow_file, *into(tmp_path))
    assert "must match" in error


@pytest.mark.parametrize("script", [inpaint.main, train_glow_mnist.main], ids=["inpaint", "train_glow_mnist"])
def test_an_unreachable_download_is_one_line(script, tmp_path, monkeypatch, one_line_error):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    error = one_line_error(script, "--dataset", "mnist", "--data-dir", tmp_path / "data", *into(tmp_path))
    assert "--dataset digits" in error


@pytest.mark.parametrize(
    ("main", "argv"),
    [(train_moons.main, QUICK_MOONS), (train_glow_mnist.main, QUICK_GLOW), (inpaint.main, QUICK_INPAINT)],
    ids=["train_moons", "train_glow_mnist", "inpaint"],
)
def test_a_folder_that_cannot_be_written_to_is_one_line(main, argv, tmp_path, tiny_glow_file, one_line_error):
    (tmp_path / "file").write_text("in the way")
    checkpoint = tmp_path if main is train_moons.main else tiny_glow_file
    error = one_line_error(main, *argv, "--checkpoint", checkpoint, "--figures", tmp_path / "file" / "figures")
    assert "cannot write" in error
    assert {path.name for path in tmp_path.iterdir()} == {"file", "tiny.pt"}


def test_ctrl_c_leaves_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_moons, "shape_points", interrupted)
    with pytest.raises(SystemExit) as stop:
        train_moons.main([])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("script", ["train_moons.py", "train_glow_mnist.py", "inpaint.py"])
def test_help_prints_the_docstring_and_a_script_starts_from_any_folder(script, tmp_path):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"python {script}" in done.stdout
    assert "Writes" in done.stdout
    assert list(tmp_path.iterdir()) == []
