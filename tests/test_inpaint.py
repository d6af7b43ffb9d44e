"""inpaint.py as a user runs it: real command lines with small numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST

import inpaint
from flowlib.files import ROOT, save_model
from flows2d import realnvp

QUICK = ["--dataset", "digits", "--count", 3, "--map-steps", 3, "--fills", 3]
PNG = b"\x89PNG"


def run(*argv):
    inpaint.main([str(argument) for argument in argv])


def into(folder):
    return ["--figures", folder, "--metrics", folder / "metrics.json"]


@pytest.fixture
def picture(tmp_path):
    """A folder with two grey pictures, 40 x 40, and beside it a mask."""
    (tmp_path / "pictures").mkdir()
    for name in ("one", "two"):
        grey = np.full((40, 40), 20, dtype=np.uint8)
        grey[5:35, 18:24] = 250
        Image.fromarray(grey).save(tmp_path / "pictures" / f"{name}.png")
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "pictures"


def test_holes_in_test_images_give_a_figure_a_table_and_metrics(
    tmp_path, tiny_glow_file, capsys
):
    run(*QUICK, "--checkpoint", tiny_glow_file, *into(tmp_path))
    assert (
        (tmp_path / "digits_batch_inpainting_result.png").read_bytes().startswith(PNG)
    )
    masks = json.loads((tmp_path / "metrics.json").read_text())["masks"]
    assert list(masks) == ["square:4", "noise:0.5"]
    for metrics in masks.values():
        assert metrics["images"] == 3
        assert metrics["map"]["log_prob"] > metrics["fill"]["log_prob"]
        assert metrics["mean"]["hole_psnr"] >= metrics["fill"]["hole_psnr"]
        assert metrics["coverage_50"] <= metrics["coverage_95"]
    assert "hole PSNR" in capsys.readouterr().out


def test_two_processes_fill_what_one_does(tmp_path, tiny_glow_file, two_processes):
    flags = [
        *QUICK,
        "--mask",
        "left",
        "--checkpoint",
        tiny_glow_file,
        "--precision",
        "fp32",
    ]
    run(*flags, *into(tmp_path / "one"))
    printed = two_processes(ROOT / "inpaint.py", *flags, *into(tmp_path / "two"))
    assert printed.count("hole PSNR") == 4  # only the first process prints
    files = [tmp_path / name / "metrics.json" for name in ("one", "two")]
    one, two = (json.loads(file.read_text())["masks"]["left"] for file in files)
    assert two["images"] == 3
    for row in ("map", "mean"):
        assert two[row]["hole_psnr"] == pytest.approx(one[row]["hole_psnr"], abs=1)


def test_pictures_of_ones_own_are_filled_with_one_command(
    tmp_path, tiny_glow_file, picture
):
    output = tmp_path / "filled"
    flags = [
        "--dataset",
        "digits",
        "--map-steps",
        2,
        "--fills",
        4,
        "--checkpoint",
        tiny_glow_file,
    ]
    run("--image", picture, "--mask", tmp_path / "mask.png", *flags, "--output", output)
    written = {path.name for path in output.iterdir()}
    for name in ("one", "two"):
        endings = (
            "",
            "_filled",
            "_mean",
            "_map",
            "_uncertainty",
            "_fill_1",
            "_fill_4",
        )
        assert {f"{name}{ending}.png" for ending in endings} <= written
    numbers = json.loads((output / "results.json").read_text())["one"]
    assert "resized from 40x40 to 8x8" in numbers["notes"]
    assert len(numbers["log_prob"]) == 4
    with Image.open(output / "one_mean.png") as mean:
        assert mean.size == (8, 8)
    with Image.open(output / "one_filled.png") as whole:
        assert whole.size == (40, 40)


def test_a_picture_may_have_any_name(tmp_path, tiny_glow_file, picture):
    """Not UTF-8, and a broken formula in a figure; one with an accent."""
    names = [tmp_path / "a\udcff$x^$.png", tmp_path / "café.png"]
    for old, new in zip(("one.png", "two.png"), names):
        (picture / old).rename(new)
    flags = ["--dataset", "digits", "--map-steps", 0, "--fills", 1]
    flags += ["--checkpoint", tiny_glow_file, "--output", tmp_path / "filled"]
    run("--image", *names, "--mask", "top", *flags)
    assert len(json.loads((tmp_path / "filled" / "results.json").read_text())) == 2


def test_a_filled_picture_keeps_its_colors_and_two_figures_are_said_to_be_two(
    tmp_path, tiny_glow_file, picture, capsys
):
    color = np.full((40, 80, 4), (250, 240, 220, 255), dtype=np.uint8)
    color[5:35, 15:24] = color[5:35, 55:64] = (20, 40, 160, 255)
    color[:4, :4, 3] = 0
    Image.fromarray(color).save(tmp_path / "two.png")
    missing = np.zeros((40, 80), dtype=np.uint8)
    missing[10:20, 10:20] = 255
    Image.fromarray(missing).save(tmp_path / "hole.png")
    flags = [
        "--dataset",
        "digits",
        "--map-steps",
        0,
        "--fills",
        1,
        "--checkpoint",
        tiny_glow_file,
    ]
    flags += ["--mask", tmp_path / "hole.png", "--output", tmp_path / "filled"]
    run("--image", tmp_path / "two.png", *flags)
    with Image.open(tmp_path / "filled" / "two_filled.png") as filled:
        same = (np.asarray(filled) == color).all(-1)
    assert same[missing == 0].all()
    assert not same[missing > 0].all()
    assert "; two separate figures" in capsys.readouterr().out
    notes = json.loads((tmp_path / "filled" / "results.json").read_text())["two"][
        "notes"
    ]
    assert any(note.startswith("two separate figures") for note in notes)


def test_a_named_mask_works_for_pictures_too(tmp_path, tiny_glow_file, picture, capsys):
    flags = ["--dataset", "digits", "--map-steps", 0, "--fills", 1]
    flags += ["--checkpoint", tiny_glow_file, "--output", tmp_path / "filled"]
    run("--image", picture / "one.png", "--mask", "noise:0.5", *flags)
    assert "one: 32 of 64 pixels missing" in capsys.readouterr().out


def test_a_mask_file_works_for_test_images_too(
    tmp_path, tiny_glow_file, picture, capsys
):
    flags = [*QUICK, "--mask", tmp_path / "mask.png", "--checkpoint", tiny_glow_file]
    run(*flags, *into(tmp_path / "out"))
    (metrics,) = json.loads((tmp_path / "out" / "metrics.json").read_text())[
        "masks"
    ].values()
    assert metrics["images"] == 3
    assert metrics["mask"].startswith("the mask ")


def test_a_picture_unlike_the_training_images_is_said_to_be(
    tmp_path, tiny_glow_file, capsys
):
    noise = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    flags = [
        "--dataset",
        "digits",
        "--map-steps",
        0,
        "--fills",
        2,
        "--checkpoint",
        tiny_glow_file,
    ]
    flags += ["--mask", "square:2", "--output", tmp_path / "filled"]
    run("--image", tmp_path / "noise.png", *flags)
    said = "below that of training images: the model knows no such pictures"
    assert said in capsys.readouterr().out
    assert (
        said
        in json.loads((tmp_path / "filled/results.json").read_text())["noise"]["notes"][
            -1
        ]
    )


def test_no_result_overwrites_a_picture_or_another_result(
    tmp_path, picture, one_line_error
):
    before = (picture / "one.png").read_bytes()
    flags = ["--dataset", "digits", "--mask", tmp_path / "mask.png"]
    error = one_line_error(
        inpaint.main, "--image", picture, *flags, "--output", picture
    )
    assert "results need another one" in error
    assert (picture / "one.png").read_bytes() == before
    (picture / "one.PNG").write_bytes(before)
    error = one_line_error(
        inpaint.main, "--image", picture, *flags, "--output", tmp_path / "f"
    )
    assert "two results would be called one.png" in error
    (picture / "one.PNG").rename(picture / "one_mean.png")
    error = one_line_error(
        inpaint.main, "--image", picture, *flags, "--output", tmp_path / "f"
    )
    assert "two results would be called one_mean.png" in error
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([*QUICK, "--mask", "square:9"], "side must be 1 ... 8"),
        ([*QUICK, "--mask", "noise:1.5"], "fraction must be in [0, 1]"),
        ([*QUICK, "--mask", "noise:0"], "no pixel is missing"),
        ([*QUICK, "--mask", "circle"], "square:SIDE"),
        ([*QUICK, "--count", 400], "only 360 test images"),
        (
            ["--image", "a.png", "--dataset", "digits", "--output", "f"],
            "no file at a.png",
        ),
        ([*QUICK, "--map-steps", -1], "--map-steps"),
        ([*QUICK, "--seed", 10**20], "--seed"),
        ([*QUICK, "--ink", "dark"], "--ink has no meaning without --image"),
        (["--image", "a.png", "--count", 9], "--count has no meaning with --image"),
    ],
)
def test_bad_flags(argv, says, tmp_path, one_line_error):
    files = [] if "--image" in argv else into(tmp_path)
    mask = ["--mask", "square:2"] if "--image" in argv else []
    assert says in one_line_error(inpaint.main, *argv, *mask, *files)
    assert list(tmp_path.iterdir()) == []


def test_pictures_need_one_mask(picture, one_line_error):
    assert "needs one --mask" in one_line_error(
        inpaint.main, "--image", picture, "--dataset", "digits"
    )


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "other kind", "not a checkpoint"]
)
def test_bad_checkpoints(damage, tmp_path, tiny_glow_file, one_line_error):
    path, figure = tmp_path / "bad.pt", tmp_path / "digits_batch_inpainting_result.png"
    if damage == "truncated":
        path.write_bytes(tiny_glow_file.read_bytes()[:3000])
    elif damage == "other kind":
        save_model(realnvp(2, layers=2, hidden=(4,)), path)
    elif damage == "not a checkpoint":
        torch.save([1, 2, 3], path)
    figure.write_bytes(b"the figure of an earlier run")
    error = one_line_error(inpaint.main, *QUICK, "--checkpoint", path, *into(tmp_path))
    says = {
        "missing": "train_glow_mnist.py",
        "truncated": "damaged",
        "other kind": "kind 'flow'",
        "not a checkpoint": "something else",
    }
    assert says[damage] in error
    assert figure.read_bytes() == b"the figure of an earlier run"


def test_a_model_of_other_images_is_refused(
    tmp_path, mnist, tiny_glow_file, one_line_error, monkeypatch
):
    monkeypatch.setattr(inpaint, "load_together", lambda *_: mnist)
    error = one_line_error(
        inpaint.main, "--checkpoint", tiny_glow_file, *into(tmp_path)
    )
    assert "must match" in error


def test_an_unreachable_download_is_one_line(tmp_path, monkeypatch, one_line_error):
    monkeypatch.setattr(
        MNIST, "mirrors", ["http://127.0.0.1:9/"]
    )  # nothing listens there
    flags = ["--dataset", "mnist", "--data-dir", tmp_path / "data"]
    assert "--dataset digits" in one_line_error(inpaint.main, *flags, *into(tmp_path))


def test_a_folder_that_cannot_be_written_to_is_one_line(
    tmp_path, tiny_glow_file, one_line_error
):
    (tmp_path / "file").write_text("in the way")
    flags = ["--checkpoint", tiny_glow_file, "--figures", tmp_path / "file" / "figures"]
    assert "cannot write" in one_line_error(inpaint.main, *QUICK, *flags)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "tiny.pt"}


def test_help_prints_the_docstring_and_the_script_starts_from_any_folder(tmp_path):
    argv = [sys.executable, ROOT / "inpaint.py", "--help"]
    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "python inpaint.py" in done.stdout
    assert "Writes" in done.stdout
    assert list(tmp_path.iterdir()) == []
