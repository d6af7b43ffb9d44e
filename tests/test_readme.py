"""The pages' commands parse, snippets run, files exist, tables are current."""

import importlib
import re
import shlex

import pytest

from benchmarks.tables import MARKED, PAGES, with_tables
from flowlib.files import ROOT

README = PAGES[0].read_text()
CITATION = (ROOT / "CITATION.cff").read_text()
TEXT = {}
for page in (*PAGES, ROOT / "flowlib/README.md", ROOT / "CONTRIBUTING.md"):
    TEXT[page.relative_to(ROOT)] = page.read_text()

SHELL = "\n".join(
    block.replace("\\\n", " ")
    for text in TEXT.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
)
# A script's name, or -m and a benchmark's, and the flags behind it.
COMMANDS = re.findall(
    r"(?:python|torchrun .*?) (?:-m (?=benchmarks\.))?"
    r"((?:\w+\.py|benchmarks\.\w+)\b[^#\n|]*)",
    SHELL,
)
WITHOUT_FLAGS = ("benchmarks.tables",)


def test_there_are_commands():
    assert len(COMMANDS) >= 12
    assert len([one for one in COMMANDS if one.startswith("benchmarks.")]) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    name, *argv = shlex.split(command)
    module = importlib.import_module(name.removesuffix(".py"))
    if name in WITHOUT_FLAGS:
        assert argv == []
    elif name == "benchmarks.torture":
        pass  # a package, whose flags its __main__ reads
    else:
        module.parse_args(argv)


def test_the_snippet_runs_and_stands_near_the_top():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert README[: README.index("```python")].count("\n") < 40
    names: dict = {}
    exec(snippet, names)
    assert names["samples"].shape == (1000, 2)

    # It trains: the density is far above that of a new flow.
    x = names["x"]
    new = names["realnvp"](2, layers=8, mean=x.mean(0), std=x.std(0))
    gain = names["flow"].log_prob(x).mean() - new.log_prob(x).mean()
    assert gain > 0.5


@pytest.mark.parametrize("page", TEXT, ids=str)
def test_every_link_and_picture_exists(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT[page])
    files = [target for target in targets if not target.startswith("http")]
    assert [file for file in files if not (ROOT / page.parent / file).exists()] == []


def test_every_section_that_is_linked_exists():
    headings = re.findall(r"^## (.*)$", PAGES[1].read_text(), re.MULTILINE)
    anchors = set()
    for heading in headings:
        words = re.sub(r"[^\w -]", "", heading.lower())
        anchors.add(words.replace(" ", "-"))
    assert set(re.findall(r"benchmarks/README.md#([\w-]+)", README)) <= anchors


def test_every_make_target_exists():
    targets = set()
    for text in TEXT.values():
        targets |= set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    there = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"figures", "test", "tables", "ship"} <= targets
    assert targets <= there


@pytest.mark.parametrize("page", PAGES, ids=[str(page.parent.name) for page in PAGES])
def test_the_tables_are_those_of_the_results_files(page):
    text = page.read_text()
    assert MARKED.findall(text)
    assert with_tables(text) == text


def test_the_readme_is_short():
    assert README.count("\n") <= 150


def test_both_citations_name_one_version_and_title():
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", README, re.DOTALL)
    for pattern in ('title: "(.*)"', "version: (.*)", r"date-released: (\d+)-"):
        (value,) = re.findall(f"^{pattern}", CITATION, re.MULTILINE)
        assert value in bibtex
