"""Runs that are killed, stopped, starved of disk, doubled, half dead, or go out of bounds."""

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
import pandas  # noqa: F401  here what the scripts import late, so that no fork has to
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
from flowlib.images.glow import load_glow
from flowlib.plots import moons as moons_plots

DIGITS = ["--dataset", "digits"]
GLOW = [*DIGITS, "--steps", "30", "--blocks", "1", "--hidden", "8", "--batch", "8"]
# a resume file after each step, so that most kills hit one
GLOW += ["--save-minutes", "0"]
MOONS = ["--epochs", "3", "--steps-per-epoch", "20", "--layers", "2", "--hidden", "8"]
FILL = [*DIGITS, "--map-steps", "3", "--chains", "3", "--checkpoint"]
FILL += [str(SHIPPED / "glow_digits.pt")]
moons_plots.SIDE, moons_plots.FRAMES = 40, 4  # small figures


def glow(folder: Path, *more: str) -> Callable[[], None]:
    """A short training of a tiny Glow, all of its files in a folder."""
    places = ["--checkpoint", folder / "glow.pt", "--figures", folder, "--metrics"]
    argv = [*GLOW, *map(str, [*places, folder / "metrics.json"]), *more]
    return lambda: train_glow_mnist.main(argv)


def moons(folder: Path, *more: str) -> Callable[[], None]:
    places = [
        "--checkpoint",
        folder,
        "--figures",
        folder,
        "--metrics",
        folder / "metrics.json",
    ]
    return lambda: train_moons.main([*MOONS, *map(str, places), *more])


def holes(folder: Path, *more: str) -> Callable[[], None]:
    places = [
        "--count",
        2,
        "--mask",
        "top",
        "--figures",
        folder,
        "--metrics",
        folder / "metrics.json",
    ]
    return lambda: inpaint.main([*FILL, *map(str, places), *more])


def pictures(folder: Path, *more: str) -> Callable[[], None]:
    """Fills holes in three pictures, which lie beside the folder."""
    for i in range(3):
        picture = folder.parent / "pictures" / f"{i}.png"
        picture.parent.mkdir(exist_ok=True)
        if not picture.exists():
            Image.fromarray(np.eye(8, k=i, dtype=np.uint8) * 250).save(picture)
    argv = [
        *FILL,
        "--image",
        folder.parent / "pictures",
        "--mask",
        "top",
        "--output",
        folder,
    ]
    return lambda: inpaint.main([*map(str, argv), *more])


SCRIPTS = {"train_glow_mnist": glow, "train_moons": moons, "inpaint": holes}
SCRIPTS |= {"inpaint --image": pictures}


def same_weights(first: Path, second: Path) -> bool:
    one, two = (load_glow(path).state_dict() for path in (first, second))
    return all(torch.equal(value, two[name]) for name, value in one.items())


def kill(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """kill -9 at a random moment of a training, then --resume: the weights of a whole run?"""
    whole = attempt(glow(folder / "whole"))
    for i in range(tries):
        place = folder / f"try{i}"
        attempt(
            glow(place), kill_after(chance.uniform(0, whole.seconds), signal.SIGKILL)
        )
        broken = [
            name
            for name in damaged_files(place)
            if not name.endswith((".part", ".lock"))
        ]
        resumed = attempt(glow(place, "--resume"))
        problem = judge(resumed, 0)
        if broken or damaged_files(place):
            problem = problem or f"lost: {broken or damaged_files(place)}"
        elif not problem and not same_weights(
            place / "glow.pt", folder / "whole/glow.pt"
        ):
            problem = "silent"
        yield problem


def stop(name: str) -> Callable:
    """SIGTERM or Ctrl-C at a random moment of one of the scripts."""

    def kind(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
        script = SCRIPTS[name]
        whole = attempt(script(folder / "whole"))
        for i in range(tries):
            number, status = [(signal.SIGTERM, 143), (signal.SIGINT, 130)][i % 2]
            place = folder / f"try{i}"
            act = kill_after(chance.uniform(0.02, whole.seconds), number)
            outcome = attempt(script(place), act)
            # 0: it was done already.
            problem = judge(outcome, status, 0)
            if damaged_files(place):
                problem = problem or f"lost: {damaged_files(place)}"
            yield problem + (f": {outcome.text[-600:]}" if problem else "")

    return kind


def full_disk(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """No file can grow beyond some size, in each script, over the files of an earlier run."""
    for i in range(tries):
        name = list(SCRIPTS)[i % len(SCRIPTS)]
        place = folder / name.replace(" ", "")
        if not place.exists():
            attempt(SCRIPTS[name](place))
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        size = int(10 ** chance.uniform(1, 5.7))
        outcome = attempt(SCRIPTS[name](place, "--seed", "1"), largest_file=size)
        problem = judge(outcome, 0, 2)
        if damaged_files(place) or before.keys() - {
            path.name for path in place.iterdir()
        }:
            problem = problem or f"lost: {damaged_files(place)}"
        yield problem + (f": {name} {size}: {outcome.text[-600:]}" if problem else "")


def two_runs(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """A second run on the checkpoint of one that is still going."""
    whole = attempt(glow(folder / "whole"))
    for i in range(tries):
        place, second = folder / f"try{i}", []
        delay = chance.uniform(0.1, whole.seconds / 3)

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
        if not problem and not same_weights(
            place / "glow.pt", folder / "whole/glow.pt"
        ):
            problem = "lost"
        yield problem + (f": {outcome.text[-600:]}" if problem else "")


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


def lose_one(number: signal.Signals) -> Callable:
    """One of two processes is killed, or hangs; then both start again with --resume."""

    def kind(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
        whole = two_processes(folder / "whole")
        for i in range(tries):
            place, victim = folder / f"try{i}", i % 2
            delay = chance.uniform(0.3, whole[0].seconds)
            outcomes = two_processes(place, kill_after(delay, number), victim)
            # 0: it did not need the other one any more.
            problem = judge(outcomes[1 - victim], 0, 2)
            resumed = problem or two_processes(place)
            problem = problem or judge(resumed[0], 0) or judge(resumed[1], 0)
            if damaged_files(place):
                problem = problem or f"lost: {damaged_files(place)}"
            if not problem and not same_weights(
                place / "glow.pt", folder / "whole/glow.pt"
            ):
                problem = "silent"
            yield problem + (f": {outcomes[1 - victim].text[-600:]}" if problem else "")

    return kind


def not_finite(tries: int, folder: Path, chance: random.Random) -> Iterator[str]:
    """From some step on the loss, a gradient or a weight is NaN or infinite."""
    for i in range(tries):
        place, bad = (
            folder / f"try{i}",
            [float("nan"), float("inf"), -float("inf")][i % 3],
        )
        first, what = (
            chance.randrange(1, 10),
            ("loss", "gradient", "weight")[i // 3 % 3],
        )

        def call(place=place, bad=bad, first=first, what=what) -> None:
            build = train_glow_mnist.build_glow

            def build_bad(*arguments):
                model, calls = build(*arguments), []
                weight, forward = (
                    model.flow.flows[0][0].flows[0].net.first.weight,
                    model.forward,
                )

                def forward_bad(*batch):
                    calls.append(batch)
                    if len(calls) > first and what == "weight":
                        weight.data[0] = bad
                    return forward(*batch) * (
                        bad if len(calls) > first and what == "loss" else 1
                    )

                if what == "gradient":
                    weight.register_hook(
                        lambda grad: grad * bad if len(calls) > first else grad
                    )
                model.forward = forward_bad
                return model

            train_glow_mnist.build_glow = build_bad
            glow(place)()

        outcome = attempt(call)
        problem = judge(outcome, 2)
        if (place / "glow.pt").exists():
            problem = problem or "silent: weights were saved"
        yield problem + (f": {what} {bad}: {outcome.text[-600:]}" if problem else "")
