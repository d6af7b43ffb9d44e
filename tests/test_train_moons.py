"""train_moons.py as a user runs it: real command lines, small numbers, bad input."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import train_moons
from flowlib.files import ROOT, load_model, save_model
from flowlib.plots import moons as plots
from flows2d import Coupling, Flow, realnvp

QUICK = ["--epochs", 2, "--steps-per-epoch", 3, "--layers", 2, "--hidden", 8]
FIGURES = ("loss_plot.png", "density_contours.png")
MODELS = ("realnvp.pt", "permutation.pt")


def run(folder, *argv):
    """Runs the script with everything it writes in `folder`; returns the metrics."""
    folder.mkdir(exist_ok=True)
    argv = [*QUICK, *argv, "--checkpoint", folder, "--figures", folder]
    train_moons.main(
        [str(word) for word in [*argv, "--metrics", folder / "metrics.json"]]
    )
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(autouse=True)
def _small_figures_and_mixtures(monkeypatch):
    monkeypatch.setattr(train_moons, "MODES", (1, 2))
    monkeypatch.setattr(plots, "SIDE", 40)
    monkeypatch.setattr(plots, "FRAMES", 4)


def files_in(folder):
    return {path.name for path in folder.iterdir()} - {"metrics.json"}


def bins_of(flow):
    """How many bins each coupling's splines have; 0 if it is affine."""
    couplings = [one for one in flow.transforms if isinstance(one, Coupling)]
    return [getattr(one, "bins", 0) for one in couplings]


def test_it_writes_figures_checkpoints_and_metrics(tmp_path, capsys):
    metrics = run(tmp_path)
    figures = {*FIGURES, "moons.gif"}
    assert files_in(tmp_path) == figures | {f"moons_{name}" for name in MODELS}
    for figure in figures:
        start = b"GIF89a" if figure.endswith("gif") else b"\x89PNG"
        assert (tmp_path / figure).read_bytes().startswith(start)
    assert metrics["floor"] == pytest.approx(0.2892, abs=1e-3)
    assert metrics["seed"] == 0
    assert {"torch", "normflows", "python"} <= metrics["versions"].keys()
    printed = capsys.readouterr().out
    for name in ("realnvp", "permutation"):
        flow = load_model(tmp_path / f"moons_{name}.pt", Flow)
        assert bins_of(flow) == [8, 8]
        again = train_moons.evaluate_flow(
            flow, train_moons.make_shape("moons", 0.05, 0)
        )
        for key in ("test_nll", "kl_truth_flow", "kl_flow_truth"):
            assert metrics["models"][name][key] == pytest.approx(again[key], abs=1e-6)
            assert again[key] > 0
        assert f"KL(truth || flow) {again['kl_truth_flow']:.4f}" in printed


def test_a_base_with_modes_has_files_of_its_own(tmp_path, one_line_error):
    metrics = run(tmp_path, "--modes", 2)
    names = {f"moons_2_modes_{name}" for name in (*FIGURES, *MODELS)}
    assert files_in(tmp_path) == names | {"moons_2_modes.gif"}
    flow = load_model(tmp_path / "moons_2_modes_realnvp.pt", Flow)
    assert flow.base.means.shape == (2, 2)
    points = train_moons.make_shape("moons", 0.05, 0)
    again = train_moons.evaluate_flow(flow, points)
    found = metrics["models"]["realnvp"]["kl_flow_truth"]
    assert found == pytest.approx(again["kl_flow_truth"], rel=1e-5)
    # The integral is what samples say, within their error.
    x = flow.sample(40_000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_ratio = flow.log_prob(x).double() - points.truth.log_prob(x)
    error = log_ratio.std().item() / 200
    assert log_ratio.mean().item() == pytest.approx(found, abs=4 * error)


def test_a_flag_says_whether_couplings_are_splines(tmp_path):
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(300, 2)))
    run(tmp_path / "out", "--bins", 0)
    run(tmp_path / "out", "--data", tmp_path / "table.npy", "--bins", 4)
    for name, bins in (("moons", 0), ("table", 4)):
        for model in MODELS:
            flow = load_model(tmp_path / "out" / f"{name}_{model}", Flow)
            assert bins_of(flow) == [bins, bins]


def test_another_shape_leaves_the_moons_files_alone(tmp_path, capsys):
    """The flow puts mass where the checkerboard has none, so one KL is infinite."""
    names = (*FIGURES, *MODELS)
    metrics = run(tmp_path / "noisy", "--noise", 0.1)
    assert metrics["floor"] == pytest.approx(1.0076, abs=1e-3)
    expected = {f"moons_noise_0.1_{name}" for name in names} | {"moons_noise_0.1.gif"}
    assert files_in(tmp_path / "noisy") == expected

    metrics = run(tmp_path / "other", "--data", "checkerboard")
    expected = {f"checkerboard_{name}" for name in names} | {"checkerboard.gif"}
    assert files_in(tmp_path / "other") == expected
    assert metrics["models"]["realnvp"]["kl_truth_flow"] > 0
    assert metrics["models"]["realnvp"]["kl_flow_truth"] is None
    assert "kl_flow_truth" not in metrics["spread"]["realnvp"]
    assert "KL(flow || truth) inf" in capsys.readouterr().out


def test_it_fits_the_users_own_points(tmp_path, capsys):
    points = np.random.default_rng(0).normal([100.0, -3.0], [20.0, 0.1], size=(300, 2))
    np.save(tmp_path / "moons.npy", points)  # the name of a shape
    (tmp_path / "out").mkdir()
    metrics = run(tmp_path / "out", "--data", tmp_path / "moons.npy")
    names = ("loss_plot.png", "density_contours.png", *MODELS)
    expected = {f"points_moons_{name}" for name in names} | {"points_moons.gif"}
    assert files_in(tmp_path / "out") == expected
    assert metrics["floor"] is None
    found = metrics["models"]["realnvp"]
    entropy = np.log(20 * 0.1) + 1 + np.log(2 * np.pi)
    assert found["test_nll"] == pytest.approx(entropy, abs=0.6)
    assert found["gain_over_gaussian"] == pytest.approx(0, abs=0.1)
    assert "kl_truth_flow" not in found
    printed = capsys.readouterr().out
    assert "rows: 300, columns: 2\n  column 1: mean 98.3, from 22.01" in printed
    gain = f"ahead of a Gaussian by {found['gain_over_gaussian']:.2f} ± "
    assert gain in printed
    # It standardizes inside: even untrained, the flow speaks the data's own
    # coordinates.
    flows = [
        load_model(tmp_path / "out" / f"points_moons_{name}", Flow) for name in MODELS
    ]
    assert flows[0].sample(500).mean(0).tolist() == pytest.approx([100, -3], rel=0.1)
    assert [bins_of(flow) for flow in flows] == [[0, 0], [0, 0]]


def test_it_fits_and_scores_tables_of_many_columns(tmp_path, capsys, one_line_error):
    points = np.random.default_rng(0).normal(size=(600, 8))
    names = "$a^$,b,c,d,e,f,g,h"  # the first one would be a broken formula in a figure
    np.savetxt(tmp_path / "t.csv", points, delimiter=",", header=names, comments="")
    run(tmp_path / "out", "--data", tmp_path / "t.csv", "--layers", 8)
    assert "t.csv:\n  rows: 600, columns: 8\n  $a^$: mean 0." in capsys.readouterr().out
    assert {"t_pairs.png", "t_loss_plot.png", "t_realnvp.pt"} <= files_in(
        tmp_path / "out"
    )
    assert "t.gif" not in files_in(tmp_path / "out")

    points[3] += 9
    np.savetxt(
        tmp_path / "new.csv", points[:5], delimiter=",", header=names, comments=""
    )
    places = ["--checkpoint", tmp_path / "out", "--figures", tmp_path / "out"]
    argv = ["--data", tmp_path / "t.csv", "--score", tmp_path / "new.csv", *places]
    train_moons.main([str(argument) for argument in argv])
    scores = (tmp_path / "out" / "new_scores.csv").read_text().splitlines()
    assert len(scores) == 6
    assert scores[1].split(",")[0] == "4"  # the outlier comes first
    assert float(scores[1].split(",")[2]) == 0
    error = one_line_error(train_moons.main, *argv, "--columns", "b", "c")
    assert (
        "was made from other data (columns $a^$, b, c, d, e, f, g, h, now b, c): fit it"
        in error
    )


def write_table(path, names: str, points) -> None:
    np.savetxt(path, points, delimiter=",", header=names, comments="")


def test_points_are_scored_by_the_flow_that_was_fitted_to_the_same_table(
    tmp_path, one_line_error
):
    points = np.random.default_rng(0).normal([1, 5, 50], [1, 2, 9], size=(300, 3))
    table, new = tmp_path / "t.csv", tmp_path / "new.csv"
    write_table(table, "a,b,c", points)
    # reordered: they are found by their names
    write_table(new, "c,a,b", points[:20, [2, 0, 1]])
    argv = [
        "--checkpoint",
        tmp_path / "out",
        "--figures",
        tmp_path / "out",
        "--data",
        table,
    ]
    train_moons.main([str(word) for word in [*QUICK, *argv, "--columns", "a", "b"]])
    score = [*argv, "--score", new, "--columns"]
    train_moons.main([str(word) for word in [*score, "a", "b"]])
    rows = (tmp_path / "out" / "new_scores.csv").read_text().splitlines()[1:]
    found = {int(row.split(",")[0]): float(row.split(",")[1]) for row in rows}
    flow = load_model(tmp_path / "out" / "t_realnvp.pt", Flow)
    expected = flow.log_prob(torch.tensor(points[:20, :2], dtype=flow.dtype)).tolist()
    assert [found[i] for i in range(1, 21)] == pytest.approx(expected, abs=1e-4)

    for columns, says in (
        ("b a", "columns a, b, now b, a"),
        ("a c", "columns a, b, now a, c"),
    ):
        error = one_line_error(train_moons.main, *score, *columns.split())
        assert f"made from other data ({says})" in error
    write_table(table, "a,b,c", points[:290])
    assert "(rows 300, now 290)" in one_line_error(train_moons.main, *score, "a", "b")
    write_table(table, "a,b,c", points + 1)  # another file of the same name
    assert "(other values)" in one_line_error(train_moons.main, *score, "a", "b")
    write_table(table, "a,a,c", points)
    assert "two columns are called 'a'" in one_line_error(
        train_moons.main, *score, "a", "c"
    )
    write_table(table, "a,b,c", points)
    write_table(new, "a,b,b", points)
    assert "two columns are called 'b'" in one_line_error(
        train_moons.main, *score, "a", "b"
    )


def test_a_flow_that_does_not_say_its_data_is_not_used_to_score(
    tmp_path, one_line_error
):
    write_table(
        tmp_path / "t.csv", "a,b", np.random.default_rng(0).normal(size=(200, 2))
    )
    for name in ("realnvp", "permutation"):  # as before there were fingerprints
        save_model(realnvp(2, layers=2), tmp_path / f"t_{name}.pt")
    argv = [
        "--data",
        tmp_path / "t.csv",
        "--score",
        tmp_path / "t.csv",
        "--checkpoint",
        tmp_path,
    ]
    error = one_line_error(train_moons.main, *argv)
    assert (
        "does not say which data it was made from: fit it with the same command"
        in error
    )


def test_a_single_column_is_fitted_by_a_mixture_and_scored(tmp_path):
    """Two far modes, one of a quarter of the points: the entropy is known."""
    generator = np.random.default_rng(0)
    first = generator.random(4000) < 0.25
    points = np.where(first, -5.0, 5.0) + generator.normal(size=4000)
    write_table(tmp_path / "t.csv", "a", points[:, None])
    argv = ["--data", tmp_path / "t.csv", "--modes", 2]
    metrics = run(tmp_path / "out", *argv, "--epochs", 10, "--steps-per-epoch", 25)
    entropy = 0.5 * np.log(2 * np.pi * np.e) - 0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert metrics["models"]["realnvp"]["test_nll"] == pytest.approx(entropy, abs=0.15)
    names = files_in(tmp_path / "out")
    assert "t_2_modes_pairs.png" in names
    assert "t_2_modes.gif" not in names
    train_moons.main(
        [str(word) for word in argv]
        + ["--score", str(tmp_path / "t.csv"), "--checkpoint", str(tmp_path / "out")]
        + ["--figures", str(tmp_path / "out")]
    )
    assert "t_scores.csv" in files_in(tmp_path / "out")


def test_gaps_of_a_table_are_filled(tmp_path, capsys, one_line_error):
    """Two columns that go together: where one is missing, the other one tells it."""
    x = np.random.default_rng(0).normal(size=(400, 1))
    y = 1e4 * (x + 0.1 * np.random.default_rng(1).normal(size=(400, 1)))
    write_table(tmp_path / "t.csv", "x,y", np.hstack([x, y]))
    lines = ["id;y;x", "a;1000,5;NA", "b;12000;", "c;;-0,5", "d;10000;1,25"]
    (tmp_path / "gaps.csv").write_text("\n".join(lines))
    places = ["--checkpoint", tmp_path / "out", "--figures", tmp_path / "out"]
    argv = [str(word) for word in ["--data", tmp_path / "t.csv", *places]]
    train_moons.main([*argv, *map(str, QUICK)])
    capsys.readouterr()
    train_moons.main([*argv, "--fill", str(tmp_path / "gaps.csv")])

    printed = capsys.readouterr().out
    assert "3 gaps in 3 of 4 rows, by " in printed
    assert re.search(r"checked on \d+ cells .* 90 % intervals hold \d+% ± \d", printed)
    filled = np.loadtxt(tmp_path / "out/gaps_filled.csv", delimiter=",", skiprows=1)
    expected = [[1, 0.1, 1000.5], [2, 1.2, 12000], [3, -0.5, -5000], [4, 1.25, 1e4]]
    error = (filled - expected) / [1, 1, 1e4]
    assert np.abs(error).max() < 0.2
    assert filled[3].tolist() == expected[3]
    text = (tmp_path / "out/gaps_samples.csv").read_text().splitlines()
    assert text[0] == "row,sample,x,y"
    assert (tmp_path / "out/gaps_gaps.png").is_file()
    assert [line.split(",")[:2] for line in text[1:]] == [
        [str(row), str(sample)] for row in (1, 2, 3) for sample in range(1, 13)
    ]

    error = one_line_error(train_moons.main, *argv, "--score", tmp_path / "gaps.csv")
    assert "row 1 of the data has no finite x" in error
    error = one_line_error(train_moons.main, *argv, "--fill", tmp_path / "t.csv")
    assert "t.csv has no missing cells" in error


def test_a_flow_of_an_earlier_version_neither_scores_nor_fills(
    tmp_path, one_line_error
):
    write_table(
        tmp_path / "t.csv", "x,y", np.random.default_rng(0).normal(size=(200, 2))
    )
    argv = ["--data", tmp_path / "t.csv", "--checkpoint", tmp_path / "out"]
    argv += ["--figures", tmp_path / "out"]
    train_moons.main([str(word) for word in [*QUICK, *argv]])
    file = tmp_path / "out" / "t_realnvp.pt"
    flow = load_model(file, Flow)
    save_model(
        flow, file, step=1, seed=0, metrics={"test_nll": 1.0}, made_from=flow.made_from
    )
    error = one_line_error(train_moons.main, *argv, "--fill", tmp_path / "t.csv")
    assert "is of an earlier version: fit it with the same command without" in error


def test_too_few_layers_for_many_columns_are_one_line(tmp_path, one_line_error):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(200, 30)))
    argv = [
        *QUICK,
        "--data",
        tmp_path / "t.npy",
        "--layers",
        2,
        "--checkpoint",
        tmp_path,
    ]
    error = one_line_error(train_moons.main, *argv, "--figures", tmp_path)
    assert "the permutation flow: layers=2 never transforms dimensions" in error


def test_several_seeds_give_mean_and_spread_and_the_first_ones_figures(
    tmp_path, capsys, monkeypatch
):
    saved = []
    monkeypatch.setattr(
        train_moons, "save_run", lambda name, fits, points, seed, *_: saved.append(seed)
    )
    two = run(tmp_path, "--noise", 0.1, "--seeds", 2)
    second = run(tmp_path, "--noise", 0.1, "--seed", 1)
    assert saved == [0, 1]
    kl = sorted(
        metrics["models"]["realnvp"]["kl_truth_flow"] for metrics in (two, second)
    )
    assert kl[0] < kl[1]
    spread = two["spread"]["realnvp"]["kl_truth_flow"]
    assert [spread["min"], spread["max"]] == pytest.approx(kl, rel=1e-6)
    assert spread["mean"] == pytest.approx(sum(kl) / 2, rel=1e-6)
    assert "over 2 seeds" in capsys.readouterr().out
    again = run(tmp_path, "--noise", 0.1, "--seed", 1)
    assert (
        again["models"]["realnvp"]["test_nll"]
        == second["models"]["realnvp"]["test_nll"]
    )


def test_no_two_seeds_or_purposes_share_points():
    points = [train_moons.make_shape("moons", 0.1, seed) for seed in (0, 1)]
    sets = [part for p in points for part in (p.draw(5_000), p.held_out, p.test)]
    rows = {tuple(row) for part in sets for row in part.tolist()}
    assert len(rows) == sum(map(len, sets))


def test_a_training_batch_is_spread_evenly_and_never_the_same():
    points = train_moons.make_shape("moons", 0.1, 0)
    means = torch.stack([points.draw(512).mean(0) for _ in range(50)])
    independent = torch.stack([points.truth.sample(512).mean(0) for _ in range(50)])
    assert (means.var(0) < 0.05 * independent.var(0)).all()
    again = train_moons.make_shape("moons", 0.1, 0)
    assert torch.equal(again.draw(512).mean(0), means[0])
    assert not torch.equal(again.draw(512).mean(0), means[0])


def test_every_parameter_has_one_optimizer_and_muon_the_hidden_matrices():
    flow = realnvp(2, layers=3, hidden=(16, 16), modes=2)
    linear = torch.nn.ModuleList(flow.transforms[1::2])
    parts = (flow, linear, flow.base)
    training = train_moons.Training(lr=0.1)
    adam, muon = train_moons.make_optimizers(*parts, training)
    rates = [group["lr"] for group in adam.param_groups]
    assert rates == pytest.approx([0.1, 0.3, 0.001])  # couplings, base, linear layers
    moved = [parameter for group in adam.param_groups for parameter in group["params"]]
    (matrices,) = muon.param_groups
    assert [weight.shape for weight in matrices["params"]] == 3 * [(16, 16)]
    assert matrices["lr"] == pytest.approx(0.01)
    ids = sorted(id(parameter) for parameter in moved + matrices["params"])
    assert ids == sorted(id(parameter) for parameter in flow.parameters())

    # Adam alone for tables, and where the networks are too narrow for Muon.
    for few_or_many in (train_moons.FEW_ROWS, train_moons.MANY_ROWS):
        (adam,) = train_moons.make_optimizers(*parts, few_or_many)
        assert adam.param_groups[1]["lr"] == few_or_many.lr  # the base's
    narrow = realnvp(2, layers=3, hidden=(4, 4))
    parts = (narrow, torch.nn.ModuleList(), narrow.base)
    assert len(train_moons.make_optimizers(*parts, training)) == 1


def test_training_gets_better_and_keeps_the_last_weights():
    points = train_moons.make_shape("moons", 0.1, 0)
    flow = realnvp(2, layers=4, hidden=(16, 16), mean=[0.5, 0.25], std=[0.9, 0.5])
    training = train_moons.Training(epochs=6, steps_per_epoch=50, batch=128, lr=1e-2)
    steps = list(train_moons.train_flow(flow, points.draw, points.held_out, training))
    assert [step.step for step in steps] == list(range(1, 301))
    ends = [step for step in steps if step.held_out_nll is not None]
    assert [(step.step, step.epoch) for step in ends] == [
        (50 * i, i) for i in range(1, 7)
    ]
    losses = [step.loss for step in steps]
    assert ends[1].train_nll == pytest.approx(np.mean(losses[50:100]))
    held_out = [step.held_out_nll for step in ends]
    assert held_out[-1] < held_out[0] - 0.2
    nll = -flow.log_prob(points.held_out).mean().item()
    assert nll == pytest.approx(held_out[-1], abs=1e-6)


def test_offsets_and_scales_of_the_users_points_cost_no_digits_and_no_paper(tmp_path):
    """Seconds since 1970 against euros: float32 would leave a handful of values."""
    points, scale = np.random.default_rng(0).normal(size=(2000, 2)), np.array([1, 3e4])
    np.save(tmp_path / "plain.npy", points)
    np.save(tmp_path / "times.npy", points * scale + np.array([1.7e9, 4e4]))
    runs = []
    for name in ("plain", "times"):
        (tmp_path / name).mkdir()
        runs.append(run(tmp_path / name, "--data", tmp_path / f"{name}.npy")["models"])
    for name in ("realnvp", "permutation"):
        plain, times = (metrics[name]["test_nll"] for metrics in runs)
        assert times == pytest.approx(plain + np.log(3e4), abs=0.01)
        flow = load_model(tmp_path / "times" / f"times_{name}.pt", Flow)
        assert abs(flow.sample(500)[:, 0].mean().item() - 1.7e9) < 1
    with Image.open(tmp_path / "times" / "times_density_contours.png") as picture:
        width, height = picture.size
    assert height < 1.2 * width


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.npy", None, "No such file"),
        ("points.doc", "1,2\n", ".npy or .csv"),
        ("three.csv", "5,2,3\n" * 150, "has 0 columns to fit"),
        ("words.csv", "a,b\nc,d\n", "has 0 columns to fit"),
        ("few.csv", "1.5,2.5\n3.5,4.5\n", "at least 100"),
        ("constant.csv", "1.5,2.5\n1.5,3.5\n" * 60, "constant"),
        ("broken.npy", "not a numpy file", "cannot read points"),
    ],
)
def test_points_that_cannot_be_used(name, content, says, tmp_path, one_line_error):
    if content is not None:
        (tmp_path / name).write_text(content)
    folders = ["--figures", tmp_path / "f", "--checkpoint", tmp_path / "c"]
    assert says in one_line_error(train_moons.main, "--data", tmp_path / name, *folders)
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "c").exists()


def test_a_learning_rate_that_explodes_is_reported(tmp_path, one_line_error):
    flags = [
        *QUICK,
        "--epochs",
        30,
        "--lr",
        1e6,
        "--figures",
        tmp_path,
        "--checkpoint",
        tmp_path,
    ]
    assert "lower --lr" in one_line_error(train_moons.main, *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--epochs", 0], "--epochs"),
        (["--noise", "much"], "--noise"),
        (["--layers", 1], "--layers"),
        (["--noise", 0.1, "--data", "checkerboard"], "--noise has no meaning"),
        (["--noise", 0.1, "--data", "points.csv"], "--noise has no meaning"),
        (["--score", "new.csv"], "--score has no meaning with --data moons"),
        (
            ["--score", "new.csv", "--data", "a.csv", "--epochs", 3],
            "--epochs has no meaning",
        ),
        (["--fill", "gaps.csv"], "--fill has no meaning with --data moons"),
        (["--decimal", ","], "--decimal has no meaning with --data moons"),
        (["--fill", "a.csv", "--score", "b.csv", "--data", "c.csv"], "--fill has no"),
        (
            ["--decimal", ",", "--thousands", ",", "--data", "a.csv"],
            "--decimal and --thousands must differ",
        ),
        (["--seed", -1], "--seed"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_bad_flags(argv, says, tmp_path, one_line_error):
    folders = ["--figures", tmp_path, "--checkpoint", tmp_path]
    assert says in one_line_error(train_moons.main, *argv, *folders)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, one_line_error):
    (tmp_path / "file").write_text("in the way")
    folders = ["--checkpoint", tmp_path, "--figures", tmp_path / "file" / "figures"]
    assert "cannot write" in one_line_error(train_moons.main, *QUICK, *folders)
    assert files_in(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
)
def test_signals_leave_one_word_and_their_exit_status(
    number, status, word, monkeypatch, capsys
):
    before = signal.getsignal(number)
    monkeypatch.setattr(
        train_moons, "make_shape", lambda *_: signal.raise_signal(number)
    )
    with pytest.raises(SystemExit) as stop:
        train_moons.main([])
    assert stop.value.code == status
    assert capsys.readouterr().err == word
    assert signal.getsignal(number) is before


def test_help_prints_the_docstring_from_any_folder_and_imports_no_matplotlib(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['train_moons.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'train_moons.py')!r}, run_name='__main__')\n"
        "finally: print(*sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "python train_moons.py" in done.stdout
    assert "Writes" in done.stdout
    assert not {"matplotlib", "torchvision", "sklearn"} & set(done.stdout.split())
    assert list(tmp_path.iterdir()) == []
