import numpy as np
import pytest
import torch

from flowlib.files import UserError
from flowlib.tables.points import score_points
from flowlib.tables.reader import read_points
from flows2d import realnvp

POINTS = np.random.default_rng(0).normal([3, -1], [1, 2], size=(150, 2)).round(4)


def table(row: str = "{},{}", header: str = "") -> str:
    return header + "".join(row.format(*point) + "\n" for point in POINTS.tolist())


def decimal_commas(text: str) -> str:
    return text.replace(".", ",")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", table()),
        ("header.csv", table(header="a,b\n")),
        ("pandas_header.csv", table(header="0,1\n")),
        (
            "pandas_index.csv",
            ",x,y\n" + "".join(f"{i},{x},{y}\n" for i, (x, y) in enumerate(POINTS)),
        ),
        ("semicolon.csv", table("{};{}")),
        ("decimal_comma.csv", decimal_commas(table("{};{}", "x;y\n"))),
        ("tabs.tsv", table("{}\t{}")),
        ("UPPER.CSV", table()),
        ("quoted.csv", table('"{}","{}"')),
        ("spaces.csv", table("{} , {}")),
        ("windows.csv", table().replace("\n", "\r\n")),
        ("exponents.csv", table("{:e},{:+e}")),
    ],
)
def test_tables_as_programs_export_them(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    np.testing.assert_allclose(read_points(tmp_path / name).points, POINTS)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding, tmp_path):
    (tmp_path / "points.csv").write_text(table(header="x,y\n"), encoding=encoding)
    np.testing.assert_allclose(read_points(tmp_path / "points.csv").points, POINTS)


def test_commas_that_group_thousands(tmp_path):
    (tmp_path / "points.csv").write_text(
        "".join(f'"{1000 * x:,.2f}","{1000 * y:,.2f}"\n' for x, y in POINTS)
    )
    found = read_points(tmp_path / "points.csv").points
    np.testing.assert_allclose(found, 1000 * POINTS, atol=0.01)


def test_columns_are_chosen_by_name_or_number_or_all_that_can_be_fitted(tmp_path):
    path = tmp_path / "points.csv"
    rows = "".join(f"{y},{i % 3},{x},no. {i}\n" for i, (x, y) in enumerate(POINTS))
    path.write_text("y,label,x,name\n" + rows)
    for columns in (["x", "y"], ["3", "1"]):
        found = read_points(path, columns)
        np.testing.assert_allclose(found.points, POINTS)
        assert found.names == ["x", "y"]
    found = read_points(path)
    np.testing.assert_allclose(found.points, POINTS[:, ::-1])
    assert found.names == ["y", "x"]
    assert found.notes[0] == "left out: label (only 3 values), name (no numbers)"
    with pytest.raises(UserError, match="no column 'z', only y, label, x, name"):
        read_points(path, ["x", "z"])
    with pytest.raises(UserError, match="label cannot be fitted: it has only 3 values"):
        read_points(path, ["x", "label"])
    assert "one column: a flow is a Gaussian" in read_points(path, ["x"]).notes[-1]


def test_a_column_that_follows_from_others_is_named(tmp_path):
    points = np.column_stack([POINTS, POINTS @ [2, -1] + 1e6])
    np.save(tmp_path / "points.npy", points)
    with pytest.raises(
        UserError, match="column 3 follows from column 1, column 2: leave it out"
    ):
        read_points(tmp_path / "points.npy")
    points[:, 2] += np.random.default_rng(1).normal(0, 0.01, len(points))
    np.save(tmp_path / "points.npy", points)
    assert read_points(tmp_path / "points.npy").points.shape == (150, 3)


def test_repetitions_and_few_points_are_said(tmp_path):
    np.save(tmp_path / "few.npy", POINTS)
    few = "only 150 points: the flows may do no better than the Gaussian"
    assert read_points(tmp_path / "few.npy").notes == [few]
    many = np.random.default_rng(0).normal(size=(1000, 2))
    np.save(tmp_path / "many.npy", many)
    assert read_points(tmp_path / "many.npy").notes == []
    many[:100] = many[100:200]
    np.save(tmp_path / "many.npy", many)
    assert (
        "100 of 1000 points are repetitions"
        in read_points(tmp_path / "many.npy").notes[0]
    )


def test_points_to_be_scored_need_not_be_many_nor_vary(tmp_path):
    (tmp_path / "one.csv").write_text("z,y,x\n0,2,1.5\n")
    found = read_points(tmp_path / "one.csv", ["x", "y"], to_fit=False)
    assert found.points.tolist() == [[1.5, 2.0]]


def test_scores_are_log_p_and_the_share_of_less_likely_points():
    flow = realnvp(2, layers=2, hidden=(4,))  # starts as the standard normal
    train, points = (
        torch.randn(4000, 2),
        torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]]),
    )
    log_p, share = score_points(flow, train, points)
    expected = -0.5 * points.double().square().sum(1) - np.log(2 * np.pi)
    torch.testing.assert_close(log_p, expected, rtol=1e-5, atol=1e-5)
    # The squared distance of a standard normal in the plane is exponential, with mean
    # 2.
    torch.testing.assert_close(
        share.double(), torch.tensor([1, np.exp(-2), 0]), rtol=0, atol=0.02
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("NA,1.0\n" + table(), "in row 1 of the data"),
        ("Infinity,1.0\n" + table(), "in row 1 of the data"),
        (table() + "1.5,\n", "in row 151 of the data"),
        (table() + "1.5,oops\n", "in row 151 of the data"),
        ("".join(f"{i % 7},{100 + i}\n" for i in range(150)), "one number or two"),
        ("x,y\n1,2.5\n", "holds 1 points"),
        (table("{0},{0}"), "column 2 follows from column 1"),
        (table("{},1.5"), "left out: column 2 .only 1 value"),
        ("", "cannot read"),
        ("x,y,z\n1,2\n3,4,5,6\n", "cannot read"),
    ],
)
def test_what_has_no_density_is_said(content, says, tmp_path):
    (tmp_path / "points.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        read_points(tmp_path / "points.csv")


def test_arrays_that_are_no_table_of_numbers(tmp_path):
    path = tmp_path / "points.npy"
    for array in (
        np.zeros(200),
        np.zeros((200, 2, 2)),
        np.full((200, 2), "1"),
        POINTS * 1j,
    ):
        np.save(path, array)
        with pytest.raises(UserError, match="one array of numbers"):
            read_points(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read points"):
        read_points(path)
