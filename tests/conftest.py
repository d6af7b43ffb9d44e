import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowlib.files import save_model
from flowlib.images.datasets import load_images
from flowlib.images.glow import Glow

# A shell starts background jobs with Ctrl-C ignored, but the tests need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing here talks to another machine."""
    connect = socket.socket.connect

    def connect_here(self, address):
        there = isinstance(address, tuple) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        )
        assert not there, f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def one_line_error(capsys):
    """Runs a script's main, which must end with exit status 2; its line on stderr."""

    def run(main, *argv) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in argv])
        printed = capsys.readouterr().err
        assert stop.value.code == 2
        assert "Traceback" not in printed
        error = printed.strip().splitlines()[-1]  # a progress bar may stand before it
        assert error.startswith("error: "), printed
        return error

    return run


@pytest.fixture
def two_processes():
    """Starts a Python script twice, as torchrun would, and returns what both print."""

    def run(*argv) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in (0, 1):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = os.environ | {name: str(value) for name, value in place.items()}
            command = [sys.executable, *map(str, argv)]
            process = subprocess.Popen(
                command, env=variables, stdout=subprocess.PIPE, text=True
            )
            started.append(process)
        printed = [process.communicate(timeout=120)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0]
        return "".join(printed)

    return run


@pytest.fixture(scope="session")
def digits():
    return load_images("digits")


@pytest.fixture(scope="session")
def mnist():
    """MNIST, from the folder that the environment's DATA_DIR names (default data/)."""
    folder = Path(os.environ.get("DATA_DIR", "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"MNIST is not in {folder}; DATA_DIR says where it lies")
    return load_images("mnist", folder, download=False)


@pytest.fixture
def tiny_glow_file(tmp_path, digits):
    """The checkpoint of an untrained, tiny Glow for the digits."""
    glow = Glow(digits.shape, digits.levels, blocks=1, hidden=8, dequantizer=4)
    glow.initialize(digits.train[:64])
    save_model(glow, tmp_path / "tiny.pt", made_from=digits.made_from)
    return tmp_path / "tiny.pt"
