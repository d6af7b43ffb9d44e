"""The pages' commands parse, their snippets run, their files exist, their tables are current."""

import re
import shlex

import pytest

import inpaint
import train_glow_mnist
import train_moons
from benchmarks import (
    digit_calibration,
    glow_bits,
    glow_speed,
    inpainting_calibration,
    inpainting_table,
    known_answer,
    moons_failures,
    moons_peers,
    moons_steps,
    processes,
    train_classifier,
)
from benchmarks.tables import MARKED, PAGES, with_tables
from flowlib.files import ROOT

PARSERS = {
    "train_moons.py": train_moons,
    "train_glow_mnist.py": train_glow_mnist,
    "inpaint.py": inpaint,
    **{
        f"benchmarks/{module.__name__.partition('.')[2]}.py": module
        for module in (glow_bits, glow_speed, inpainting_calibration, inpainting_table)
        + (
            digit_calibration,
            known_answer,
            moons_failures,
            moons_peers,
            moons_steps,
            processes,
        )
        + (train_classifier,)
    },
}
README = PAGES[0].read_text()
TEXT = {
    page.relative_to(ROOT): page.read_text()
    for page in (*PAGES, ROOT / "flowlib/README.md")
}
SHELL = "\n".join(
    block.replace("\\\n", " ")
    for text in TEXT.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
)
COMMANDS = re.findall(
    r"(?:python|torchrun .*?) ((?:benchmarks/)?\w+\.py[^#\n|]*)", SHELL
)


def test_there_are_commands():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    script, *argv = shlex.split(command)
    PARSERS[script].parse_args(argv)


def test_the_snippet_runs_and_stands_near_the_top(capsys):
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    assert README[: README.index("```python")].count("\n") < 40
    for snippet in snippets:
        names: dict = {}
        exec(snippet, names)
        assert names["samples"].shape == (1000, 2)
        names["loss"].backward()


@pytest.mark.parametrize("page", TEXT, ids=str)
def test_every_link_and_picture_exists(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT[page])
    files = [target for target in targets if not target.startswith("http")]
    assert [file for file in files if not (ROOT / page.parent / file).exists()] == []


def test_every_section_that_is_linked_exists():
    headings = re.findall(r"^## (.*)$", PAGES[1].read_text(), re.MULTILINE)
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
    assert set(re.findall(r"benchmarks/README.md#([\w-]+)", README)) <= anchors


def test_every_make_target_exists():
    targets = {
        target for text in TEXT.values() for target in re.findall(r"`?make (\w+)", text)
    }
    makefile = (ROOT / "Makefile").read_text()
    wanted = {"figures", "test", "tables"}
    assert wanted <= targets
    assert [
        one for one in wanted if not re.search(rf"^{one}:", makefile, re.MULTILINE)
    ] == []


@pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)
def test_the_tables_are_those_of_the_results_files(page):
    text = page.read_text()
    assert MARKED.findall(text)
    assert with_tables(text) == text


def test_the_readme_is_short():
    assert README.count("\n") <= 140
