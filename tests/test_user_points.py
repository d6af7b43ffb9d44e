import numpy as np
import pytest

from flowlib.files import UserError
from flowlib.user_points import read_points

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
    np.testing.assert_allclose(read_points(tmp_path / name), POINTS)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding, tmp_path):
    (tmp_path / "points.csv").write_text(table(header="x,y\n"), encoding=encoding)
    np.testing.assert_allclose(read_points(tmp_path / "points.csv"), POINTS)


def test_commas_that_group_thousands(tmp_path):
    (tmp_path / "points.csv").write_text(
        "".join(f'"{1000 * x:,.2f}","{1000 * y:,.2f}"\n' for x, y in POINTS)
    )
    np.testing.assert_allclose(read_points(tmp_path / "points.csv"), 1000 * POINTS, atol=0.01)


def test_two_columns_of_a_larger_table_are_chosen_by_name_or_number(tmp_path):
    path = tmp_path / "points.csv"
    rows = "".join(f"{y},{i % 3},{x}\n" for i, (x, y) in enumerate(POINTS))
    path.write_text("y,label,x\n" + rows)
    for columns in (["x", "y"], ["3", "1"]):
        np.testing.assert_allclose(read_points(path, columns), POINTS)
    with pytest.raises(UserError, match=r"has 3 columns \(y, label, x\): --columns"):
        read_points(path)
    with pytest.raises(UserError, match="no column 'z', only y, label, x"):
        read_points(path, ["x", "z"])
    with pytest.raises(UserError, match="label has only 3 values"):
        read_points(path, ["x", "label"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("NA,1.0\n" + table(), "in row 1 of the data"),
        ("Infinity,1.0\n" + table(), "in row 1 of the data"),
        (table() + "1.5,\n", "in row 151 of the data"),
        (table() + "1.5,oops\n", "in row 151 of the data"),
        ("".join(f"{i % 7},{100 + i}\n" for i in range(150)), "one number or two"),
        ("x,y\n1,2.5\n", "holds 1 points"),
        (table("{0},{0}"), "lie on a line"),
        (table("{},1.5"), "column 2 is constant"),
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
    for array in (np.zeros(200), np.zeros((200, 2, 2)), np.full((200, 2), "1"), POINTS * 1j):
        np.save(path, array)
        with pytest.raises(UserError, match="one array of numbers"):
            read_points(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read points"):
        read_points(path)
