"""Runs that are killed, stopped, starved of disk, doubled, half dead, or diverge."""

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas  # noqa: F401  what the scripts import late, so that no fork has to
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo
import torchvision  # noqa: F401
from PIL import Image

import flowlib.plots.glow
import flowlib.plots.inpainting  # noqa: F401
import inpaint
import train_glow_mnist
import train_moons
from benchmarks.torture.harness import (
    Outcome,
    attempt,
    damaged_files,
    judge,
    kill_after,
)
from flowlib import distributed
from flowlib.files import SHIPPED
from flowlib.images.glow import Glow, load_glow
from flowlib.plots import moons as moons_plots

DIGITS = ["--dataset", "digits"]
GLOW = [*DIGITS, "--steps", "30", "--blocks", "1", "--hidden", "8", "--batch", "8"]
MOONS = ["--epochs", "3", "--steps-per-epoch", "20", "--layers", "2", "--hidden", "8"]
FILL = [*DIGITS, "--map-steps", "3", "--fills", "3", "--checkpoint"]
FILL += [str(SHIPPED / "glow_digits.pt")]

# A resume file after each step, so that most kills hit one; and small figures.
train_glow_mnist.SAVE_EVERY = 0
moons_plots.SIDE = 40
moons_plots.FRAMES = 4


def glow(folder: Path, *more: str) -> Callable[[], None]:
    """A short training of a tiny Glow, all of its files in a folder."""
    places = ["--checkpoint", folder / "glow.pt", "--figures", folder, "--metrics"]
    argv = [*GLOW, *map(str, [*places, folder / "metrics.json"]), *more]
    return lambda: train_glow_mnist.main(argv)


def moons(folder: Path, *more: str) -> Callable[[], None]:
    """A short training of two small flows, all of their files in a folder."""
    places = ["--checkpoint", folder, "--figures", folder, "--metrics"]
    argv = [*MOONS, *map(str, [*places, folder / "metrics.json"]), *more]
    return lambda: train_moons.main(argv)


def holes(folder: Path, *more: str) -> Callable[[], None]:
    """Fills holes in two test images."""
    flags = ["--count", 2, "--mask", "top", "--figures", folder, "--metrics"]
    argv = [*FILL, *map(str, [*flags, folder / "metrics.json"]), *more]
    return lambda: inpaint.main(argv)


def pictures(folder: Path, *more: str) -> Callable[[], None]:
    """Fills holes in three pictures, which lie beside the folder."""
    source = folder.parent / "pictures"
    source.mkdir(exist_ok=True)
    for i in range(3):
        picture = source / f"{i}.png"
        if not picture.exists():
            Image.fromarray(np.eye(8, k=i, dtype=np.uint8) * 250).save(picture)

    flags = ["--image", source, "--mask", "top", "--output", folder]
    argv = [*FILL, *map(str, flags), *more]
    return lambda: inpaint.main(argv)


SCRIPTS = {"train_glow_mnist": glow, "train_moons": moons, "inpaint": holes}
SCRIPTS |= {"inpaint --image": pictures}


def same_weights(first: Path, second: Path) -> bool:
    """Whether the Glows in two folders are equal."""
    one = load_glow(first / "glow.pt").state_dict()
    two = load_glow(second / "glow.pt").state_dict()
    return all(torch.equal(value, two[name]) for name, value in one.items())


def kill(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """kill -9 at a random moment of a training, then --resume to the same weights."""
    undisturbed = attempt(glow(folder / "undisturbed"))
    for i in range(tries):
        place = folder / f"try{i}"
        delay = chance.uniform(0, undisturbed.seconds)
        attempt(glow(place), kill_after(delay, signal.SIGKILL))
        left = (".part", ".lock")  # the next run replaces these
        broken = [name for name in damaged_files(place) if not name.endswith(left)]

        problem = judge(attempt(glow(place, "--resume")), 0)
        broken += damaged_files(place)
        if not problem and broken:
            problem = f"lost: {broken}"
        if not problem and not same_weights(place, folder / "undisturbed"):
            problem = "silent"
        yield problem


def stop(name: str) -> Callable:
    """SIGTERM or Ctrl-C at a random moment of one of the scripts."""

    def kind(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
        script = SCRIPTS[name]
        undisturbed = attempt(script(folder / "undisturbed"))
        for i in range(tries):
            asked, status = [(signal.SIGTERM, 143), (signal.SIGINT, 130)][i % 2]
            place = folder / f"try{i}"
            delay = chance.uniform(0.02, undisturbed.seconds)
            outcome = attempt(script(place), kill_after(delay, asked))

            # 0: it was done already.
            problem = judge(outcome, status, 0)
            if not problem and damaged_files(place):
                problem = f"lost: {damaged_files(place)}"
            yield problem and f"{problem}: {outcome.text[-600:]}"

    return kind


def full_disk(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """No file can grow beyond some size, in each script, over an earlier run's."""
    for i in range(tries):
        name = list(SCRIPTS)[i % len(SCRIPTS)]
        place = folder / name.replace(" ", "")
        if not place.exists():
            attempt(SCRIPTS[name](place))

        before = {path.name for path in place.iterdir()}
        size = int(10 ** chance.uniform(1, 5.7))
        outcome = attempt(SCRIPTS[name](place, "--seed", "1"), largest_file=size)
        problem = judge(outcome, 0, 2)
        lost = [
            *damaged_files(place),
            *before - {path.name for path in place.iterdir()},
        ]
        if not problem and lost:
            problem = f"lost: {lost}"
        yield problem and f"{problem}: {name} {size}: {outcome.text[-600:]}"


def two_runs(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """A second run on the checkpoint of one that is still going."""
    undisturbed = attempt(glow(folder / "undisturbed"))
    for i in range(tries):
        place = folder / f"try{i}"
        second = []
        delay = chance.uniform(0.1, undisturbed.seconds / 3)

        def start_second(process: int, place=place, second=second, delay=delay) -> None:
            time.sleep(delay)
            second.append((process, attempt(glow(place, "--seed", "1"))))

        first = attempt(glow(place), start_second)
        while not second:
            time.sleep(0.05)

        process, outcome = second[0]
        problem = judge(first, 0) or judge(outcome, 2)
        if not problem and f"written by process {process}" not in outcome.text:
            problem = "silent"
        if not problem and not same_weights(place, folder / "undisturbed"):
            problem = "lost"
        yield problem and f"{problem}: {outcome.text[-600:]}"


def two_processes(
    place: Path, act: Callable | None = None, victim: int = 0
) -> list[Outcome]:
    """What two processes that train together come to; `act` is done to one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(rank: int) -> None:
        distributed.SILENCE = timedelta(seconds=8)
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
        launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in launched.items()})
        glow(place, "--resume")()

    outcomes: list = [None, None]

    def work(rank: int) -> None:
        chosen = act if rank == victim else None
        outcomes[rank] = attempt(lambda: call(rank), chosen, timeout=40)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def lose_one(asked: signal.Signals) -> Callable:
    """One of two processes is killed, or hangs; then both start again with --resume."""

    def kind(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
        undisturbed = two_processes(folder / "undisturbed")
        for i in range(tries):
            place = folder / f"try{i}"
            victim = i % 2
            delay = chance.uniform(0.3, undisturbed[0].seconds)
            outcomes = two_processes(place, kill_after(delay, asked), victim)

            # 0: it did not need the other one any more.
            survivor = outcomes[1 - victim]
            problem = judge(survivor, 0, 2)
            if not problem:
                resumed = two_processes(place)
                problem = judge(resumed[0], 0) or judge(resumed[1], 0)
            if not problem and damaged_files(place):
                problem = f"lost: {damaged_files(place)}"
            if not problem and not same_weights(place, folder / "undisturbed"):
                problem = "silent"
            yield problem and f"{problem}: {survivor.text[-600:]}"

    return kind


def not_finite(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """From some step on the loss, a gradient or a weight is NaN or infinite."""
    for i in range(tries):
        place = folder / f"try{i}"
        bad = [float("nan"), float("inf"), -float("inf")][i % 3]
        what = ("loss", "gradient", "weight")[i // 3 % 3]
        first = chance.randrange(1, 10)

        def call(place=place, bad=bad, what=what, first=first) -> None:
            build = train_glow_mnist.build_glow
            train_glow_mnist.build_glow = lambda *arguments: spoil(
                build(*arguments), what, bad, first
            )
            glow(place)()

        outcome = attempt(call)
        problem = judge(outcome, 2)
        if not problem and (place / "glow.pt").exists():
            problem = "silent: weights were saved"
        yield problem and f"{problem}: {what} {bad}: {outcome.text[-600:]}"


def spoil(model: Glow, what: str, bad: float, first: int) -> Glow:
    """The model, whose loss, gradient or weight is `bad` after its first calls."""
    calls = []
    forward = model.forward
    weight = model.flow.flows[0][0].flows[0].net.first.weight

    def forward_bad(*batch):
        calls.append(batch)
        if what == "weight" and len(calls) > first:
            weight.data[0] = bad
        loss = forward(*batch)
        return loss * bad if what == "loss" and len(calls) > first else loss

    if what == "gradient":
        weight.register_hook(lambda grad: grad * bad if len(calls) > first else grad)
    model.forward = forward_bad
    return model
