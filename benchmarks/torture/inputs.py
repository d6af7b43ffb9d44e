"""Damaged files, edited configs, odd flags, tables and pictures of changed bytes."""

import contextlib
import io
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.torture.harness import attempt, damaged_files, judge
from benchmarks.torture.runs import SCRIPTS, inpaint, train_glow_mnist, train_moons
from flowlib.files import UserError, load_model, save_model
from flowlib.images.classifier import Classifier
from flowlib.images.glow import Glow
from flowlib.images.user_images import read_picture
from flowlib.tables.reader import read_points
from flowlib.training import TrainingState, load_resume, save_resume
from flows2d import Flow, permutation_flow, realnvp

KINDS = {"flow": Flow, "permutations": Flow, "glow": Glow, "classifier": Classifier}


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """A small file of each kind; a second flow has permutations."""
    torch.manual_seed(0)
    models = {
        "flow": realnvp(2, 3, (8,), torch.zeros(2), torch.ones(2)),
        "permutations": permutation_flow(2, 3, (8,), seed=0),
        "glow": Glow((1, 8, 8), 17, blocks=1, hidden=8, dequantizer=4),
        "classifier": Classifier((1, 8, 8), 17, width=4),
    }
    paths = {name: folder / f"{name}.pt" for name in models}
    for name, model in models.items():
        save_model(model, paths[name])

    paths["resume"] = folder / "resume.pt"
    save_resume(fresh_state(), paths["resume"], {"seed": 0}, {})
    return paths


def fresh_state() -> TrainingState:
    """The state of a small training that has not begun."""
    torch.manual_seed(1)
    model = nn.Linear(20, 20)
    return TrainingState(model, [torch.optim.Adam(model.parameters())])


def read(name: str, path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file, as the scripts read them, UserErrors included."""
    if name == "resume":
        state = fresh_state()
        load_resume(state, path, {"seed": 0}, {})
        return state.model.state_dict()
    return load_model(path, KINDS[name]).state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether the weights are equal."""
    return all(torch.equal(first[key], value) for key, value in second.items())


def reading(name: str, path: Path, right: dict | None = None) -> str:
    """What is wrong with reading a damaged file in a process of its own, "" if nothing.

    It should give the weights `right`, or be refused in a line.
    """

    def call() -> None:
        try:
            found = read(name, path)
        except UserError as error:
            print(f"error: {error}")
            raise SystemExit(2) from None
        if right is None or not same(found, right):
            raise SystemExit(3)

    outcome = attempt(call, timeout=20)
    return "silent" if outcome.status == 3 else judge(outcome, 0, 2)


def damage(change: Callable[[bytearray, random.Random], None]) -> Callable:
    """A kind of try in which some of a checkpoint's bytes change."""

    def kind(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
        paths = write_checkpoints(folder)
        right = {name: read(name, path) for name, path in paths.items()}
        for i in range(tries):
            name = list(paths)[i % len(paths)]
            content = bytearray(paths[name].read_bytes())
            change(content, chance)
            damaged = folder / "damaged.pt"
            damaged.write_bytes(content)

            problem = reading(name, damaged, right[name])
            yield problem and f"{problem}: {name}"

    return kind


def truncate(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def flip(content: bytearray, chance: random.Random) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def mutate(content: bytearray, chance: random.Random) -> None:
    """One to four bytes changed, left out or put in, or the rest cut off."""
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(content) + 1)
        what = chance.choice(("change", "change", "remove", "insert", "cut"))
        if what == "cut" and chance.random() < 0.2:
            del content[place:]
        elif what == "remove":
            del content[place : place + chance.randint(1, 9)]
        elif what == "insert":
            content[place:place] = chance.randbytes(chance.randint(1, 9))
        elif place < len(content):
            content[place] = chance.randrange(256)


def edited(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """One value of a model's config or metadata is another one."""
    paths = write_checkpoints(folder)
    odd = [-1, 0, 0.5, 10**6, 10**20, float("nan"), float("inf"), "7", "", None]
    odd += [[], {}, True, [1] * 3, torch.zeros(2), b"x"]
    for i in range(tries):
        name = list(PLACES)[i % len(PLACES)]
        content = torch.load(paths[name], weights_only=True)

        # The dict or list that the value is in.
        key = chance.choice(["kind", "format", *PLACES[name]])
        holder = content
        *steps, last = [int(s) if s.isdecimal() else s for s in key.split(".")]
        for step in steps:
            holder = holder[step]

        value = chance.choice(odd)
        while np.array_equal(value, holder[last]):  # such as True for 1
            value = chance.choice(odd)
        holder[last] = value
        torch.save(content, folder / "edited.pt")
        problem = reading(name, folder / "edited.pt")
        yield problem and f"{problem}: {name} {key}={value!r}"


# What has only one right value. With another mean, say, a config is valid: the weights
# decide.
GLOWS = [f"config.{name}" for name in ("shape", *Glow.LIMITS)]
PLACES = {
    "flow": ["config", "config.dim", "config.transforms", "config.transforms.1.0"],
    "permutations": ["config.dim", "config.transforms.1.1.dim", "state_dict"],
    "glow": ["config", *GLOWS, "state_dict"],
    "classifier": ["config.shape", "config.width", "config.classes", "state_dict"],
}


def other_kind(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """A file of one kind where another is wanted, and files that are no checkpoints."""
    paths = write_checkpoints(folder)
    (folder / "text.pt").write_text("no checkpoint")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "folder.pt").mkdir()
    torch.save([1, 2], folder / "list.pt")
    torch.save(nn.Linear(2, 2).state_dict(), folder / "bare.pt")
    torch.save(nn.Linear(2, 2), folder / "pickle.pt")

    no_checkpoints = [folder / f"{name}.pt" for name in NO_CHECKPOINTS]
    for _ in range(tries):
        wanted = chance.choice(list(paths))
        kind = KINDS.get(wanted)
        others = [path for name, path in paths.items() if KINDS.get(name) != kind]
        path = chance.choice([*others, *no_checkpoints])
        problem = reading(wanted, path)
        yield problem and f"{problem}: {path.name} as {wanted}"


NO_CHECKPOINTS = ("text", "empty", "folder", "list", "bare", "pickle")
ODD_VALUES = ("0", "-1", "1" + "0" * 20, "nan", "inf", "1e400")
ODD_VALUES += ("", "é", "0x10", "1_0", "\udcff")


def flags(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """Every flag of every script with odd values; what is valid may run."""
    mains = {
        "train_glow_mnist": train_glow_mnist.main,
        "train_moons": train_moons.main,
        "inpaint": inpaint.main,
        "inpaint --image": inpaint.main,
    }
    pairs = []
    for name, main in mains.items():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main(["--help"])
        found = set(re.findall(r"^  (--[a-z-]+)", text.getvalue(), re.MULTILINE))
        for flag in sorted(found):
            pairs += [(name, flag, value) for value in ODD_VALUES]
    if tries < len(pairs):
        pairs = chance.sample(pairs, tries)

    for i, (name, flag, value) in enumerate(pairs):
        place = folder / f"try{i}"
        script = SCRIPTS[name](place, flag, value)

        def call(script=script) -> None:
            os.chdir(folder)  # where an odd --output is written
            script()

        # A valid value may ask for a long run: with a progress bar that is no hang.
        outcome = attempt(call, timeout=20)
        busy = outcome.hung and "%|" in outcome.text
        problem = "" if busy else judge(outcome, 0, 2)
        if damaged_files(place) and not busy:
            problem = problem or "lost"
        said = outcome.text[-600:]
        yield problem and f"{problem}: {name} {flag} {value!r}: {said}"


def mutated_tables(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """Tables and arrays of points: read as finite numbers, or refused."""
    points = np.random.default_rng(0).normal(size=(120, 2)).round(3)
    texts = {
        "a.csv": "x,y\n" + "".join(f"{x},{y}\n" for x, y in points),
        "b.csv": "".join(f"{x};{y}\n" for x, y in points).replace(".", ","),
        "c.tsv": "".join(f'"{x}"\t"{y}"\n' for x, y in points),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    buffer = io.BytesIO()
    np.save(buffer, points)
    contents["d.npy"] = buffer.getvalue()

    def check(path: Path) -> None:
        found = read_points(path).points
        assert found.shape[1] >= 2
        assert len(found) >= 100
        assert np.isfinite(found).all()

    yield from _mutated(contents, check, tries, folder, chance)


def mutated_pictures(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """Pictures and masks in several formats: read at the model's size, or refused."""
    stroke = np.zeros((20, 20), dtype=np.uint8)
    stroke[3:17, 9:12] = 250
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[5:10, 5:15] = 255

    contents = {}
    for role, array in (("picture", stroke), ("mask", mask)):
        for ending in ("png", "jpg", "gif", "tif", "bmp", "webp", "pgm"):
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, format=FORMATS.get(ending, ending))
            contents[f"{role}.{ending}"] = buffer.getvalue()
    for name in ("picture", "mask"):
        (folder / f"good_{name}.png").write_bytes(contents[f"{name}.png"])

    def check(path: Path) -> None:
        places = [path, folder / "good_mask.png"]
        if path.name.startswith("mask"):
            places = [folder / "good_picture.png", path]
        found = read_picture(*places, (1, 8, 8), 17)
        assert found.image.shape == found.mask.shape == (1, 8, 8)
        assert found.image.max() <= 16
        assert found.mask.any()

    yield from _mutated(contents, check, tries, folder, chance)


FORMATS = {"jpg": "jpeg", "tif": "tiff", "pgm": "ppm"}


def _mutated(
    contents: dict, check: Callable, tries: int, folder: Path, chance: random.Random
) -> Iterator[str]:
    for i in range(tries):
        name = list(contents)[i % len(contents)]
        content = bytearray(contents[name])
        mutate(content, chance)
        (folder / name).write_bytes(content)

        def call(path=folder / name) -> None:
            try:
                check(path)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None

        problem = judge(attempt(call, timeout=20), 0, 2)
        yield problem and f"{problem}: {name}: {bytes(content)[:400]!r}"
