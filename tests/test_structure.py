"""The house: which module may import which, and how densely the code may be written."""

import ast
import io
import re
import tokenize

import pytest

from flowlib.files import ROOT

SCRIPTS = ("train_moons", "train_glow_mnist", "inpaint")
MODULES = [ROOT / f"{name}.py" for name in ("flows2d", *SCRIPTS)]
MODULES += sorted((ROOT / "flowlib").rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in MODULES]
ALL_CODE = [*MODULES]
ALL_CODE += sorted((ROOT / "benchmarks").rglob("*.py"))
ALL_CODE += sorted((ROOT / "tests").rglob("*.py"))

NO_MODEL = ("density", "ascent", "refine")
LAZY = {"torchvision", "sklearn", "matplotlib", "pandas"}

# The caps. A token is a word, a number or a sign; docstrings and comments have none.
TOKENS = 51_500
TOKENS_A_LINE = 9.5
TUPLE_ASSIGNMENTS = 6  # in 1,000 lines: `a, b = x, y` is for pairs that belong together
LONG_FUNCTION = 15  # lines, from which on a function needs a blank line
PARAGRAPH = 16  # the most lines of a function without a blank one between them
COLUMNS = 88
NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}

# ---------------------------------------------------------------- who imports whom


def imports(tree: ast.AST) -> set[str]:
    """The modules that are imported anywhere below a node."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_the_root_shows_four_python_files():
    assert {path.stem for path in ROOT.glob("*.py")} == {"flows2d", *SCRIPTS}


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_run_one_way(path):
    found = imports(ast.parse(path.read_text()))
    name = str(path.relative_to(ROOT))
    assert not roots(found) & {"benchmarks", "tests"}
    if name == "flows2d.py":
        assert roots(found) <= {"torch", "math", "collections"}
    if name.startswith("flowlib"):
        assert not roots(found) & set(SCRIPTS)
        knows_flows = name.endswith(("/plots/moons.py", "/glow_layers.py"))
        knows_flows |= "/tables/" in name
        assert "flows2d" not in found or knows_flows

    # Inside flowlib: which folders' modules a module may import.
    ours = {one.removeprefix("flowlib.") for one in found if one.startswith("flowlib.")}
    folders = {one.partition(".")[0] for one in ours if "." in one}
    allowed = {"images": {"images"}, "inpainting": {"images", "inpainting"}}
    allowed["tables"] = {"inpainting", "tables"}
    folder = path.parent.name
    if name.startswith("flowlib/") and folder != "plots":
        assert folders <= allowed.get(folder, set())
    if folder == "inpainting" and path.stem in NO_MODEL:
        assert "images" not in folders


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_what_is_slow_to_import_is_imported_where_it_is_used(path):
    if path.parent.name == "plots":
        return

    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= imports(node)
    assert not roots(found) & LAZY
    assert not any(name.startswith("flowlib.plots") for name in found)


# ---------------------------------------------------------------- how dense it is


def docstring(node: ast.AST) -> ast.stmt | None:
    """The statement that is a node's docstring."""
    first = node.body[0] if node.body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if is_text and isinstance(first.value.value, str) else None


def lines_of_docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = docstring(node)
            if text is not None:
                found |= set(range(text.lineno, text.end_lineno + 1))
    return found


def lines_of_tokens(text: str) -> list[int]:
    """The line of each token of the code."""
    skipped = lines_of_docstrings(ast.parse(text))
    lines = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE and token.start[0] not in skipped:
            lines.append(token.start[0])
    return lines


def is_tuple_assignment(node: ast.AST) -> bool:
    """Whether it is a, b = x, y."""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def functions(path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_the_whole_can_be_read_in_an_afternoon():
    sizes = {}
    for name, path in zip(IDS, MODULES):
        sizes[name] = len(lines_of_tokens(path.read_text()))
    assert sum(sizes.values()) <= TOKENS, sizes


def test_a_line_holds_one_statement_and_air():
    tokens = 0
    code_lines = 0
    all_lines = 0
    tuples = 0
    for path in MODULES:
        text = path.read_text()
        found = lines_of_tokens(text)
        tokens += len(found)
        code_lines += len(set(found))
        all_lines += len(text.splitlines())
        tuples += sum(is_tuple_assignment(node) for node in ast.walk(ast.parse(text)))

    assert tokens / code_lines <= TOKENS_A_LINE
    assert 1000 * tuples / all_lines <= TUPLE_ASSIGNMENTS


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_long_functions_have_paragraphs(path):
    lines = path.read_text().splitlines()
    without = []
    for node in functions(path):
        body = node.body[1:] if docstring(node) else node.body
        if not body:
            continue
        inside = "\n".join(lines[body[0].lineno - 1 : node.end_lineno])
        paragraphs = [len(part.splitlines()) for part in re.split(r"\n\s*\n", inside)]
        longest = LONG_FUNCTION - 1 if len(paragraphs) == 1 else PARAGRAPH
        if max(paragraphs) > longest:
            without.append(node.name)
    assert without == []


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_functions_are_small(path):
    for node in functions(path):
        arguments = node.args.args + node.args.kwonlyargs
        count = len([one for one in arguments if one.arg not in ("self", "cls")])
        assert node.end_lineno - node.lineno < 60, node.name
        assert count <= 8, node.name


def test_no_line_is_too_long():
    long = []
    for path in ALL_CODE:
        for i, line in enumerate(path.read_text().splitlines(), 1):
            if len(line) > COLUMNS:
                long.append(f"{path.relative_to(ROOT)}:{i}")
    assert long == []
