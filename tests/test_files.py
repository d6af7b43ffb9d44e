"""Files are written whole or not at all, and a damaged one is never read in silence."""

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
    """Files of this process cannot grow beyond `size` bytes: what a full disk looks like."""
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
    path, model = tmp_path / "model.pt", Model(30)
    save_model(model, path, seed=3)
    good, refused = path.read_bytes(), 0
    for place in torch.randint(
        len(good), (60,), generator=torch.Generator().manual_seed(0)
    ):
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


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path, names = (
        tmp_path / "a.png",
        (f"a.png.{ended.pid}.part", f"a.png.{os.getppid()}.part"),
    )
    for name in (*names, f"b.png.{ended.pid}.part", "a.png.old.part"):
        (tmp_path / name).write_text("half")
    write_atomically(path, lambda temporary: temporary.write_text("whole"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.png", names[1], f"b.png.{ended.pid}.part", "a.png.old.part"}


def test_two_processes_that_write_one_file_both_succeed(tmp_path):
    path = tmp_path / "file.txt"

    def write(temporary):
        other = "import sys, pathlib; from flowlib.files import write_atomically as w; "
        other += "w(pathlib.Path(sys.argv[1]), lambda temporary: temporary.write_text('other'))"
        temporary.write_text("mine")
        subprocess.run([sys.executable, "-c", other, str(path)], cwd=ROOT, check=True)
        assert path.read_text() == "other"

    write_atomically(path, write)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "model.pt"
    code = "import sys, time, pathlib; from flowlib.files import lock\n"
    code += "with lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"written by process {holder.pid} on"),
            lock(path),
        ):
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
    content = torch.load(path)
    torch.save(content | {"format": FORMAT + 1}, path)
    with pytest.raises(
        UserError, match=f"format {FORMAT + 1}, .* format {FORMAT}: make it again"
    ):
        load_model(path, Model, hint="make it again")
    torch.save(content | {"metrics": [1, 2]}, path)
    with pytest.raises(UserError, match="damaged: one of its parts"):
        load_model(path, Model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(bad, tmp_path):
    path, model = tmp_path / "model.pt", Model(3)
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
        with pytest.raises(
            UserError, match="is published with the project: write elsewhere"
        ):
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
        ({"name": "mnist"}, {"name": "digits"}, "name mnist, now digits"),
        ({"name": "mnist"}, {"files": MANY}, "mnist, now files of one's own"),
        # an edited file
        ({"rows": [1], "values": 3}, {"rows": 5, "values": "2e"}, "now 5"),
    ],
)
def test_other_data_is_refused_with_the_difference(earlier, now, says, tmp_path):
    require_same_data(tmp_path / "m.pt", now, dict(now), "fit again")
    with pytest.raises(
        UserError, match=f"m.pt was made from other data .*{says}.*: fit again"
    ):
        require_same_data(tmp_path / "m.pt", earlier, now, "fit again")
    with pytest.raises(
        UserError, match="does not say which data it was made from: fit again"
    ):
        require_same_data(tmp_path / "m.pt", {}, now, "fit again")
