"""The README's commands parse and its files exist."""

import re
import shlex

import pytest

import inpaint
import train_glow_mnist
import train_moons
from benchmarks import inpainting_table, moons_peers
from benchmarks.tables import MARKED, with_tables
from flowlib.files import ROOT

README = (ROOT / "README.md").read_text()
SCRIPTS = {
    "train_moons.py": train_moons,
    "train_glow_mnist.py": train_glow_mnist,
    "inpaint.py": inpaint,
    "benchmarks/inpainting_table.py": inpainting_table,
    "benchmarks/moons_peers.py": moons_peers,
}
COMMANDS = re.findall(
    r"^ *(?:\$ )?python (\S+\.py[^#\n|]*)", "\n".join(re.findall(r"```(?:sh|bash)?\n(.*?)```", README, re.DOTALL)), re.MULTILINE
)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    script, *argv = shlex.split(command)
    SCRIPTS[script].parse_args(argv)


def test_every_link_and_picture_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    files = [target for target in targets if not target.startswith("http")]
    assert sum(file.endswith(".png") for file in files) >= 4
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_make_target_exists():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE) + re.findall(r"`make (\w+)", README)
    makefile = (ROOT / "Makefile").read_text()
    assert {"figures", "test"} <= set(targets)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_tables_are_those_of_the_results_files():
    assert MARKED.findall(README)
    assert with_tables(README) == README
