"""The house: which module may import which, and how large files and functions may get."""

import ast
import io
import tokenize

import pytest

from flowlib.files import ROOT

SCRIPTS = ("train_moons", "train_glow_mnist", "inpaint")
MODULES = [ROOT / f"{name}.py" for name in ("flows2d", *SCRIPTS)]
MODULES += sorted((ROOT / "flowlib").rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in MODULES]
NO_MODEL = ("density", "ascent", "initial_fills", "hmc")
LAZY = {"torchvision", "sklearn", "matplotlib", "pandas"}


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
    found, name = imports(ast.parse(path.read_text())), str(path.relative_to(ROOT))
    mine = {
        module.removeprefix("flowlib.")
        for module in found
        if module.startswith("flowlib.")
    }
    assert not roots(found) & {"benchmarks", "tests"}
    if name == "flows2d.py":
        assert roots(found) <= {"torch", "math", "collections"}
    if name.startswith("flowlib"):
        assert not roots(found) & set(SCRIPTS)
        assert "flows2d" not in found or name == "flowlib/plots/moons.py"
    folders = {module.partition(".")[0] for module in mine if "." in module}
    allowed = {"images": {"images"}, "inpainting": {"images", "inpainting"}}
    folder = path.parent.name
    if name.startswith("flowlib/") and folder != "plots":
        assert folders <= allowed.get(folder, set())
    if folder == "inpainting" and path.stem in NO_MODEL:
        assert "images" not in folders


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_what_is_slow_to_import_is_imported_where_it_is_used(path):
    top = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    found = roots(set().union(*(imports(node) for node in top)))
    assert path.parent.name == "plots" or not found & LAZY
    modules = set().union(*(imports(node) for node in top))
    assert path.parent.name == "plots" or not any(
        name.startswith("flowlib.plots") for name in modules
    )


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_functions_are_small(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            count = len(arguments.args + arguments.kwonlyargs)
            count -= bool(arguments.args) and arguments.args[0].arg in ("self", "cls")
            assert node.end_lineno - node.lineno < 60, node.name
            assert count <= 8, node.name


def test_the_whole_can_be_read_in_an_afternoon():
    """Size is counted in tokens of code, so that packing lines gains nothing."""
    empty = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    empty |= {tokenize.COMMENT, tokenize.ENDMARKER}
    tokens = 0
    for path in MODULES:
        read = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        tokens += sum(token.type not in empty for token in read)
    assert tokens <= 45_000
