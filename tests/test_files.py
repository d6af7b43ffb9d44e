"""Files are written completely or not at all; no damaged one is read in silence."""

import contextlib
import os
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

from flowlib import files
from flowlib.files import (
    FORMAT,
    ROOT,
    SHIPPED,
    UserError,
    find_checkpoint,
    load_model,
    lock,
    require_same_data,
    require_writable,
    save_model,
    write_atomically,
)


class Model(nn.Linear):
    def __init__(self, size: int):
        super().__init__(size, size)
        self.config = {"size": size}


@contextlib.contextmanager
def at_most(size: int):
    """Files of this process cannot grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    save_model(Model(4), path)
    good = path.read_bytes()
    with at_most(20_000), pytest.raises(UserError, match=r"cannot write .*model.pt"):
        save_model(Model(200), path)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


def test_a_flipped_bit_anywhere_changes_nothing_or_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    model = Model(30)
    save_model(model, path, seed=3)
    good = path.read_bytes()
    refused = 0

    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(good), (60,), generator=generator):
        content = bytearray(good)
        content[place] ^= 1 << (int(place) % 8)
        path.write_bytes(content)
        try:
            loaded = load_model(path, Model)
        except UserError:
            refused += 1
        else:
            assert torch.equal(loaded.weight, model.weight)
            assert torch.equal(loaded.bias, model.bias)
    assert refused > 40


def python(code: str, *argv) -> list[str]:
    """A command that runs this code with these arguments."""
    return [sys.executable, "-c", code, *map(str, argv)]


def test_what_a_killed_process_left_half_written_is_no_obstacle(tmp_path):
    path = tmp_path / "a.png"
    code = """
import os, pathlib, sys
from flowlib.files import write_atomically

def write(temporary):
    temporary.write_text("half of it, and it was longer")
    os.kill(os.getpid(), 9)

write_atomically(pathlib.Path(sys.argv[1]), write)
"""
    subprocess.run(python(code, path), cwd=ROOT)
    assert {".part"} <= {left.suffix for left in tmp_path.iterdir()}
    assert not path.exists()
    write_atomically(path, lambda temporary: temporary.write_text("complete"))
    assert path.read_text() == "complete"
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_processes_that_write_one_file_the_second_is_told(tmp_path):
    path = tmp_path / "file.txt"
    code = """
import pathlib, sys
from flowlib.files import UserError, write_atomically
try:
    write_atomically(pathlib.Path(sys.argv[1]), lambda temporary: temporary.touch())
except UserError as error:
    print(error)
"""

    def write(temporary):
        temporary.write_text("mine")
        second = python(code, path)
        done = subprocess.run(second, cwd=ROOT, capture_output=True, text=True)
        assert f"is being written by process {os.getpid()} on" in done.stdout

    write_atomically(path, write)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "model.pt"
    code = """
import pathlib, sys, time
from flowlib.files import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen(python(code, path), cwd=ROOT, stdout=subprocess.PIPE)

    try:
        assert holder.stdout.readline() == b"held\n"
        refused = pytest.raises(UserError, match=f"by process {holder.pid} on")
        with refused, lock(path):
            pass
        with lock(tmp_path / "another.pt"), lock(path, wanted=False):
            pass
    finally:
        holder.kill()
        holder.communicate()

    with at_most(10), lock(path):  # the disk is full
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_later_format_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    save_model(Model(3), path)
    torch.save(torch.load(path) | {"format": FORMAT + 1}, path)
    says = f"format {FORMAT + 1}, .* format {FORMAT}; make it again"
    with pytest.raises(UserError, match=says):
        load_model(path, Model, hint="make it again")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(bad, tmp_path):
    path = tmp_path / "model.pt"
    model = Model(3)
    save_model(model, path)
    content = torch.load(path)
    content["state_dict"]["bias"][1] = bad
    torch.save(content, path)
    with pytest.raises(UserError, match="damaged: its weights are not finite"):
        load_model(path, Model)

    model.bias.data[1] = bad
    with pytest.raises(UserError, match="not written: the weights are not finite"):
        save_model(model, tmp_path / "other.pt")
    assert not (tmp_path / "other.pt").exists()


def test_writability_is_tried_before_the_work_begins(tmp_path):
    require_writable(tmp_path / "new", files=[tmp_path / "metrics" / "m.json", None])
    assert (tmp_path / "new").is_dir()
    assert (tmp_path / "metrics").is_dir()

    with pytest.raises(UserError, match="it is a folder"):
        require_writable(files=[tmp_path / "new"])
    with pytest.raises(UserError, match="cannot write to .*: File name too long"):
        require_writable(files=[tmp_path / ("n" * 300)])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to"):
        require_writable(files=[tmp_path / "file" / "m.json"])


def test_shipped_files_are_only_read(tmp_path):
    path = SHIPPED / "moons_realnvp.pt"
    before = path.read_bytes()
    for other in (
        path,
        SHIPPED / ".." / "shipped" / "new.pt",
        SHIPPED / "folder" / "new.pt",
    ):
        with pytest.raises(UserError, match="shipped.* is published with the project"):
            save_model(Model(2), other)
        with pytest.raises(UserError, match="with the project: write elsewhere"):
            require_writable(files=[other])
    with pytest.raises(UserError, match="checkpoints/shipped is published"):
        require_writable(SHIPPED)
    assert path.read_bytes() == before


def test_ones_own_checkpoint_goes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path)
    assert find_checkpoint("moons_realnvp.pt") == SHIPPED / "moons_realnvp.pt"
    save_model(Model(2), tmp_path / "moons_realnvp.pt")
    assert find_checkpoint("moons_realnvp.pt") == tmp_path / "moons_realnvp.pt"


MANY = [f"{i}.png" for i in range(12)]


@pytest.mark.parametrize(
    ("earlier", "now", "says"),
    [
        (
            {"columns": ["a", "b"], "rows": 5},
            {"columns": ["b", "a"], "rows": 5},
            "a, b, now b, a",
        ),
        ({"columns": ["a"], "rows": 5}, {"columns": ["a"], "rows": 6}, "rows 5, now 6"),
        ({"rows": 5, "values": "1f"}, {"rows": 5, "values": "2e"}, "other values"),
        ({"files": MANY}, {"files": [*MANY, "x.png"]}, "files: 1 new, such as x.png"),
        ({"files": MANY}, {"files": MANY[2:]}, "files: 2 gone, such as 0.png"),
        ({"files": MANY}, {"files": MANY[::-1]}, "files: in another order"),
        ({"files": 3}, {"files": MANY[:1]}, r"files 3, now \['0.png'\]"),
        ({"name": "mnist"}, {"name": "digits"}, "name mnist, now digits"),
        ({"name": "mnist"}, {"files": MANY}, "mnist, now files of one's own"),
    ],
)
def test_other_data_is_refused_with_the_difference(earlier, now, says, tmp_path):
    require_same_data(tmp_path / "m.pt", now, dict(now), "fit again")
    other = f"m.pt was made from other data .*{says}.*: fit again"
    with pytest.raises(UserError, match=other):
        require_same_data(tmp_path / "m.pt", earlier, now, "fit again")
    unknown = "does not say which data it was made from: fit again"
    with pytest.raises(UserError, match=unknown):
        require_same_data(tmp_path / "m.pt", {}, now, "fit again")
