"""The examples in the docstrings run, and show what they say that they show."""

import doctest
import importlib

import pytest

from flowlib.files import ROOT

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FILES = [ROOT / "flows2d.py", *sorted((ROOT / "flowlib").rglob("*.py"))]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in FILES
    if ">>>" in path.read_text()
]


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 5


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_run(name, monkeypatch, capsys):
    # Examples name files from the root of the project.
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=FLAGS)
    assert tried > 0
    assert failed == 0, capsys.readouterr().out
