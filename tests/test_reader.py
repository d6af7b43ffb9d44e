import numpy as np
import pytest

from flowlib.files import UserError
from flowlib.tables.reader import Format, Table, describe, read_points

POINTS = np.random.default_rng(0).normal([3, -1], [1, 2], size=(150, 2)).round(4)
X, Y = POINTS.T
ASKS = "is .* or .*Give --decimal . or --thousands"


def table(row: str = "{},{}", header: str = "", points: np.ndarray = POINTS) -> str:
    return header + "".join(row.format(*point) + "\n" for point in points.tolist())


def decimal_commas(text: str) -> str:
    return text.replace(".", ",")


def grouped(points: np.ndarray, mark: str) -> np.ndarray:
    """Numbers as text, with their thousands grouped."""
    return np.array([[f"{x:,}".replace(",", mark) for x in row] for row in points])


@pytest.fixture
def read(tmp_path):
    """Writes a table and reads it."""

    def write_and_read(content: str, *args, name: str = "points.csv", **kwargs):
        (tmp_path / name).write_text(content)
        return read_points(tmp_path / name, *args, **kwargs)

    return write_and_read


# ---------------------------------------------------------------- as programs write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", table()),
        ("header.csv", table(header="a,b\n")),
        ("pandas_header.csv", table(header="0,1\n")),
        ("semicolon.csv", table("{};{}")),
        ("decimal_comma.csv", decimal_commas(table("{};{}", "x;y\n"))),
        ("tabs.tsv", table("{}\t{}")),
        ("bars.txt", decimal_commas(table("{}|{}"))),
        ("UPPER.CSV", table()),
        ("quoted.csv", table('"{}","{}"')),
        ("quoted_header.csv", table(header='"a, in m","b; in s"\n')),
        ("spaces.csv", table("{} , {}")),
        ("windows.csv", table().replace("\n", "\r\n")),
        ("exponents.csv", table("{:.6e},{:+.6e}")),
        ("savetxt.txt", table("{:.18e} {:.18e}")),
        ("aligned.txt", table("{:9.4f}  {:9.4f}", "   x          y\n")),
        ("comments.csv", table(header="# m, s\n# by hand\nx,y\n")),
        ("excel_sep.csv", table("{};{}", "sep=;\nx;y\n")),
        ("minus.csv", table().replace("-", "\N{MINUS SIGN}")),
        ("commas_quoted.csv", decimal_commas(table('"{}","{}"', "x,y\n"))),
        ("commas_header.csv", decimal_commas(table('"{}","{}"'))),
        ("commas_tabs.tsv", decimal_commas(table("{}\t{}"))),
        ("blank_lines.csv", "\n\nx,y\n\n" + table() + "\n\n"),
    ],
)
def test_tables_as_programs_write_them(name, content, read):
    found = read(content, name=name)
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.notes[-1] == "only 150 points"
    names = {"header.csv": ["a", "b"], "quoted_header.csv": ["a, in m", "b; in s"]}
    if name in names:
        assert found.names == names[name]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(encoding, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(table(header="Größe,y\n"), encoding=encoding)
    found = read_points(path)
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.names == ["Gr��e" if encoding == "cp1252" else "Größe", "y"]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (",x,y\n", "{},{},{}"),
        ("Unnamed: 0,x,y\n", "{},{},{}"),
        ("\tx\ty\n", "{}\t{}\t{}"),
        ('"x","y"\n', '"{}",{},{}'),
        ('"x" "y"\n', '"{}" {} {}'),
        ("x y\n", "{} {} {}"),
    ],
)
def test_row_numbers_of_pandas_and_r_are_left_out(header, row, read):
    found = read(table(row, header, np.column_stack([range(1, 151), POINTS])))
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.names == ["x", "y"]
    assert "(no name: row numbers)" in found.notes[0]


@pytest.mark.parametrize(
    ("header", "words", "row"),
    [
        ("Datum;x;y\n", "{:02}.03.2015", "{2};{0};{1}"),
        ("x;y;Bemerkung\n", "ca. {}", "{0};{1};{2}"),
        ("Gerät\tx\ty\n", "v1.{}", "{2}\t{0}\t{1}"),
        ("Zeit;x;y\n", "2024-01-01 10:{}", "{2};{0};{1}"),
    ],
)
def test_words_with_points_change_no_decimal_commas(header, words, row, read):
    lines = []
    for i, point in enumerate(POINTS.tolist()):
        numbers = [decimal_commas(str(number)) for number in point]
        lines.append(row.format(*numbers, words.format(i)) + "\n")
    found = read(header + "".join(lines))
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.names == ["x", "y"]
    assert "(no numbers)" in found.notes[0]


# ---------------------------------------------------------------- marks in numbers


@pytest.mark.parametrize(
    ("mark", "row"),
    [
        (",", '"{}","{}"'),
        (",", "{};{}"),
        (",", "{}\t{}"),
        ("'", "{};{}"),
        ("’", "{},{}"),
        (" ", "{};{}"),
        ("\N{NARROW NO-BREAK SPACE}", "{}\t{}"),
    ],
)
def test_grouped_thousands_beside_a_decimal_mark(mark, row, read):
    points = (1000 * POINTS).round(2)
    text = table(row, "x{}y\n".format(row.strip('"{}') or ","), grouped(points, mark))
    np.testing.assert_array_equal(read(text).points, points)


def test_one_grouped_number_in_a_column_of_decimal_commas(read):
    text = decimal_commas(table("{};{}", "x;y\n")) + "1.234,56;50,00\n"
    found = read(text).points
    np.testing.assert_array_equal(found, [*POINTS, [1234.56, 50]])
    points = (1000 * POINTS).round(2)
    german = table("{};{}", "", grouped(points, "_")).replace(".", ",")
    np.testing.assert_array_equal(read(german.replace("_", ".")).points, points)


@pytest.mark.parametrize("separator", [";", "\t", " ", "|"])
@pytest.mark.parametrize("mark", [".", ","])
def test_three_digits_after_each_mark_can_be_decimals_or_thousands(
    mark, separator, read
):
    whole = np.random.default_rng(1).integers(1000, 99_999, size=(150, 2))
    row = separator.join(["{}", "{}"])
    text = table(row, row.format("x", "y") + "\n", grouped(whole, mark))
    options = {"separator": separator}
    with pytest.raises(UserError, match=ASKS) as error:
        read(text, format=Format(**options))
    assert f"Give --decimal {mark} or --thousands {mark}" in str(error.value)
    assert "\n" not in str(error.value)
    found = read(text, format=Format(**options, thousands=mark))
    np.testing.assert_array_equal(found.points, whole)
    found = read(text, format=Format(**options, decimal=mark))
    np.testing.assert_array_equal(found.points, whole / 1000)


def test_whole_numbers_beside_grouped_ones_do_not_decide(read):
    whole = np.random.default_rng(1).integers(500, 2000, size=(150, 2))
    text = table('"{}","{}"', "people,area\n", grouped(whole, ","))
    with pytest.raises(UserError, match="people: " + ASKS):
        read(text)
    found = read(text, format=Format(thousands=","))
    np.testing.assert_array_equal(found.points, whole)


def test_where_commas_separate_a_point_is_a_decimal_point(read):
    points = np.random.default_rng(1).integers(1000, 99_999, size=(150, 2)) / 1000
    np.testing.assert_array_equal(
        read(table("{:.3f},{:.3f}", "", points)).points, points
    )


def test_each_column_is_decided_by_its_own_cells(read):
    text = "x;y\n" + "".join(f"{x};{decimal_commas(str(y))}\n" for x, y in POINTS)
    np.testing.assert_array_equal(read(text).points, POINTS)
    # x has decimals; that does not tell what 10.026 is in y
    text = "x;y\n" + "".join(f"{x};10.{100 + i}\n" for i, x in enumerate(X))
    with pytest.raises(UserError, match="y: " + ASKS):
        read(text)
    assert read(text, ["x"]).names == ["x"]


@pytest.mark.parametrize(
    "content",
    [
        decimal_commas(table("{0}", points=np.abs(POINTS))),
        decimal_commas(table("{0}", points=np.abs(POINTS))) + "NA\n7,5\n",
        "".join(f"{i % 7},{100 + i}\n" for i in range(150)),
        "".join(f"{i % 7},{100 + i},{i % 9},{200 + i}\n" for i in range(150)),
        "".join(f"{1 + i},{100 + i}.25\n" for i in range(150)),
        "".join(f"{1 + i}'234,{100 + i}\n" for i in range(150)),
        "".join(f"{1 + i} {100 + i}.25\n" for i in range(150)),
    ],
)
def test_two_numbers_can_be_one(content, read):
    with pytest.raises(UserError, match="one number or two"):
        read(content)


def test_the_flags_say_whether_a_comma_separates(read):
    text = decimal_commas(table("{0}"))
    np.testing.assert_array_equal(
        read(text, ["1"], format=Format(decimal=",")).points, POINTS[:, :1]
    )
    text = table(points=np.column_stack([range(150), range(500, 650)]) ** 2)
    found = read(text, format=Format(separator=","))
    np.testing.assert_array_equal(found.points[2], [4, 502**2])
    for row in ("{} {}", "{} 2024-01-01 {}"):
        with pytest.raises(UserError, match="do commas or spaces separate"):
            read(decimal_commas(table(row)))
    found = read(decimal_commas(table("{} {}")), format=Format(separator=" "))
    np.testing.assert_array_equal(found.points, POINTS)


def test_an_index_is_told_from_a_number_whose_thousands_a_space_groups(read):
    text = "".join(f"{1 + i % 9} {100 + i}.25 {y}\n" for i, y in enumerate(Y))
    with pytest.raises(UserError, match="2 cells in the first row, 3 in the next"):
        read("x y\n" + text)


def test_beside_quoted_decimal_commas_a_point_can_group_thousands(read):
    text = "x,y\n" + "".join(
        f'"{decimal_commas(str(x))}",{i + 1}.{i + 100}\n' for i, x in enumerate(X)
    )
    with pytest.raises(UserError, match="y: " + ASKS):
        read(text)


# ---------------------------------------------------------------- headers


def test_a_header_says_how_many_columns_there_are(read):
    whole = np.random.default_rng(1).integers(100, 999, size=(150, 2))
    assert read(table(header="height,age\n", points=whole)).points.shape == (150, 2)
    text = table(header="a,b\n").replace(".", ",")
    with pytest.raises(UserError, match="2 cells in the first row, 4 in the next"):
        read(text)
    with pytest.raises(UserError, match="3 cells in the first row, 2 in the next"):
        read(table(header="a,b,c\n"))
    # One name too few is R's; but with bare commas it may be a decimal one.
    with pytest.raises(UserError, match="2 cells in the first row, 3 in the next"):
        read("day,x\n" + "".join(f"{i}.1.2015,{i},5\n" for i in range(150)))


def test_a_first_row_with_words_only_where_all_have_words_is_a_point(read):
    text = "".join(f"{x},{y},setosa\n" for x, y in POINTS)
    np.testing.assert_array_equal(read(text).points, POINTS)
    text = "".join(f"2024-01-{i % 30},{x},{y}\n" for i, (x, y) in enumerate(POINTS))
    found = read(text)
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.names == ["column 2", "column 3"]


@pytest.mark.parametrize("first", ["?", "NA", "NaN", ""])
def test_a_first_row_with_a_missing_cell_is_a_point(first, read):
    found = read(f"{first},1.5678\n" + table())
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.notes[0] == "1 of 151 rows left out: a cell is missing"


@pytest.mark.parametrize(
    "first", ["400.0,500.5", "2019,2020", "1,2", "oops,1.5", "id,2019", "1e3,2e3"]
)
def test_a_first_row_that_may_be_a_header_is_asked_for(first, read):
    with pytest.raises(UserError, match="a header. Give --header or --no-header"):
        read(first + "\n" + table())
    found = read(first + "\n" + table(), format=Format(header=True))
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.names == first.split(",")


def test_counting_whole_numbers_may_be_a_header(read):
    whole = np.random.default_rng(1).integers(0, 99, size=(150, 2))
    text = table("{};{}", "0;1\n", whole)
    with pytest.raises(UserError, match="Give --header or --no-header"):
        read(text)
    found = read(text, format=Format(header=False))
    np.testing.assert_array_equal(found.points, [[0, 1], *whole])
    assert read(text, format=Format(header=True)).names == ["0", "1"]


# ---------------------------------------------------------------- columns and rows


def test_columns_are_chosen_by_name_or_number_or_all_that_can_be_fitted(read):
    rows = "".join(f"{y},{i % 3},{x},no. {i}\n" for i, (x, y) in enumerate(POINTS))
    text = "y,label,x,name\n" + rows
    for columns in (["x", "y"], ["3", "1"]):
        found = read(text, columns)
        np.testing.assert_array_equal(found.points, POINTS)
        assert found.names == ["x", "y"]
    found = read(text)
    np.testing.assert_array_equal(found.points, POINTS[:, ::-1])
    assert found.names == ["y", "x"]
    assert found.notes[0] == "left out: label (only 3 values), name (no numbers)"
    with pytest.raises(UserError, match="no column 'z', only y, label, x, name"):
        read(text, ["x", "z"])
    with pytest.raises(UserError, match="label cannot be fitted: it has only 3 values"):
        read(text, ["x", "label"])
    with pytest.raises(
        UserError, match="row 1 of the data, name: 'no. 0' is no number"
    ):
        read(text, ["x", "name"])
    assert read(text, ["x"]).names == ["x"]


def test_a_doubled_name_is_refused_if_it_is_taken(read):
    text = "".join(f"{x},{y},{x * y}\n" for x, y in POINTS)
    for columns in ([], ["x", "y"], ["2", "3"]):
        with pytest.raises(UserError, match="two columns are called 'x': rename one"):
            read("x,x,y\n" + text, columns)
    assert read("x,x,y\n" + text, ["y"]).names == ["y"]
    with pytest.raises(UserError, match="two columns are called 'y'"):
        read("x,z,y\n" + text, ["y", "y"])


@pytest.mark.parametrize("gap", ["", "NA", "nan", "?", "null", "None"])
def test_missing_cells_are_left_out_or_kept_or_refused(gap, read):
    text = table(header="x,y\n") + f"1.5,{gap}\n" + table()
    found = read(text)
    np.testing.assert_array_equal(found.points, [*POINTS, *POINTS])
    assert found.notes[0] == "1 of 301 rows left out: a cell is missing"
    assert read(text, ["x"]).points[150] == 1.5
    found = read(text, ["y", "x"], to_fit=False, gaps=True).points
    np.testing.assert_array_equal(found[150], [np.nan, 1.5])
    with pytest.raises(UserError, match="row 151 of the data has no finite y"):
        read(text, ["x", "y"], to_fit=False)


def test_missing_entries_of_arrays(tmp_path):
    path = tmp_path / "points.npy"
    np.save(path, [*POINTS, [np.nan, 1.5]])
    found = read_points(path)
    np.testing.assert_array_equal(found.points, POINTS)
    assert found.notes[0] == "1 of 151 rows left out: a cell is missing"
    assert np.isnan(read_points(path, to_fit=False, gaps=True).points[150, 0])


def test_a_row_that_is_too_short_is_refused_where_spaces_separate(read):
    with pytest.raises(UserError, match="a row is too short"):
        read(table("{} {}") + "1.5\n", name="points.txt")


# ---------------------------------------------------------------- points to score


def test_points_to_be_scored_need_not_be_many_nor_vary(read):
    found = read("z,y,x\n0,2,1.5\n", ["x", "y"], to_fit=False)
    assert found.points.tolist() == [[1.5, 2.0]]
    assert found.notes == []


def test_points_to_be_scored_go_by_name_or_without_a_header_by_place(read):
    found = read("1.5,2\n", ["x", "y"], to_fit=False)
    assert found.points.tolist() == [[1.5, 2.0]]
    assert found.names == ["x", "y"]
    assert found.notes == ["no header: the columns are taken as x, y"]
    for content in ("1.5,2,3.5\n", "a,b\n1.5,2\n", "x,b\n1.5,2\n"):
        with pytest.raises(UserError, match="it has no column"):
            read(content, ["x", "y"], to_fit=False)
    with pytest.raises(UserError, match="no column '1', only x, y"):
        read("x,y\n1.5,2\n", ["1", "2"], to_fit=False)
    swapped = read("1.5,2\n", ["column 2", "column 1"], to_fit=False)
    assert swapped.points.tolist() == [[2.0, 1.5]]


# ---------------------------------------------------------------- no density


def test_a_column_that_follows_from_others_is_named(tmp_path):
    path = tmp_path / "points.npy"
    points = np.column_stack([POINTS, POINTS @ [2, -1] + 1e6])
    follows = "column 3 follows from column 1, column 2: leave it out"
    # In any units.
    for scale in (1, 1e-300, 1e290):
        np.save(path, points * scale)
        with pytest.raises(UserError, match=follows):
            read_points(path)
    points[:, 2] += np.random.default_rng(1).normal(0, 0.01, len(points))
    np.save(path, points)
    assert read_points(path).points.shape == (150, 3)


@pytest.mark.parametrize("unit", [1e-300, 1e-46, 1e44, 1e300])
def test_any_units(unit, tmp_path, read):
    np.save(tmp_path / "points.npy", POINTS * [unit, 1])
    for found in (
        read_points(tmp_path / "points.npy"),
        read(table(points=POINTS * [unit, 1])),
    ):
        np.testing.assert_array_equal(found.points, POINTS * [unit, 1])
        assert found.notes == ["only 150 points"]
        assert len(describe(found)) == 3


def test_repetitions_and_few_points_are_said(tmp_path):
    path = tmp_path / "points.npy"
    np.save(path, POINTS)
    assert read_points(path).notes == ["only 150 points"]
    many = np.random.default_rng(0).normal(size=(1000, 2))
    np.save(path, many)
    assert read_points(path).notes == []
    many[:100] = many[100:200]
    np.save(path, many)
    assert "100 of 1000 points are repetitions" in read_points(path).notes[0]


def test_point_masses_are_named_with_their_share(tmp_path):
    path = tmp_path / "points.npy"
    points = np.random.default_rng(0).normal(size=(1000, 2))
    points[:700, 0] = 0
    points[:150, 1] = -2.5
    points[150:200, 1] = 2.5
    np.save(path, points)
    notes = read_points(path).notes
    assert notes[0].startswith("column 1 is 0 in 70% of the rows, a point mass")
    assert notes[1].startswith("column 2 is -2.5 in 15% of the rows, a point mass")
    assert notes[2].startswith("column 2 is 2.5 in 5% of the rows, a point mass")


def test_rounded_numbers_are_no_point_masses(tmp_path):
    path = tmp_path / "points.npy"
    rng = np.random.default_rng(0)
    ages = rng.integers(18, 90, size=1000)
    tails = rng.standard_t(2, size=1000).round(1)
    np.save(path, np.column_stack([ages, tails, rng.normal(size=1000)]))
    assert read_points(path).notes == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Infinity,1.0\n" + table(), "row 1 of the data has no finite column 1"),
        (table() + "1.5,1e999\n", "row 151 of the data has no finite column 2"),
        (table() + "1.5,oops\n", "row 151 of the data, column 2: 'oops' is no number"),
        (table("{};{}") + "1,5;1.5\n", "row 151 of the data, column 1: '1,5'"),
        ("x,y\n1,2.5\n", "holds 1 points"),
        (table("{0},{0}"), "column 2 follows from column 1"),
        (table("{},1.5"), "one column to fit; left out: column 2 .only 1 value"),
        (table("a{},b{}"), "0 columns to fit; left out: column 1 .no numbers"),
        (table(header="x;y\n"), "cannot read"),
        ("x,y\n", "it has 0 columns to fit"),
        ("", "cannot read"),
        ("x,y,z\n1,2\n3,4,5,6\n", "cannot read"),
        (table() + '"1.5,2.5\n', "cannot read"),
    ],
)
def test_what_has_no_density_is_said(content, says, read):
    with pytest.raises(UserError, match=says) as error:
        read(content)
    assert "\n" not in str(error.value)


def test_too_many_columns(tmp_path):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(100, 65)))
    with pytest.raises(UserError, match="65 columns to fit, 64 are the most"):
        read_points(tmp_path / "points.npy")


# ---------------------------------------------------------------- what was read


def test_means_and_ranges_are_described():
    points = np.array([[1.5, 1e9 + 1], [2.5, 1e9 + 2]])
    assert describe(Table(points, ["x", "t"], [])) == [
        "rows: 2, columns: 2",
        "x: mean 2, from 1.5 to 2.5",
        "t: mean 1000000001.5, from 1000000001 to 1000000002",
    ]


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
