"""Files, each written completely or not at all, and what a run was made on.

Models, metrics and figures are written under another name, and then moved into place.
"""

import contextlib
import json
import os
import platform
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:
    import fcntl
except ImportError:  # Windows: there two runs on one file are not kept apart
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"  # what runs make here
# The weights that we publish: `make ship` alone writes there.
SHIPPED = CHECKPOINTS / "shipped"
# Of checkpoints and resume files. Raise it when the code cannot read older ones.
FORMAT = 2
Model = TypeVar("Model", bound=nn.Module)


class UserError(Exception):
    """A mistake that whoever runs the script can mend; its text says how."""


def reason(error: Exception) -> str:
    """The first line of what an error says, or its name if it says nothing."""
    says = getattr(error, "strerror", None) or str(error).strip()  # without the file
    return (says or type(error).__name__).splitlines()[0]


def readable(name: str) -> str:
    """A file's name that can be printed and drawn: what is not UTF-8 becomes "?"."""
    return name.encode(errors="replace").decode()


def find_checkpoint(name: str) -> Path:
    """checkpoints/NAME if a run has made it here, otherwise the shipped one."""
    own = CHECKPOINTS / name
    return own if own.exists() else SHIPPED / name


def short(path: str | Path) -> str:
    """A path as it is printed: from the project's folder on, if it is in there."""
    inside = Path(path).resolve()
    if inside.is_relative_to(ROOT):
        path = inside.relative_to(ROOT)
    return readable(str(path))


def _refuse_shipped(path: Path) -> None:
    """Raises UserError if a path is among the shipped files."""
    if path.resolve().is_relative_to(SHIPPED):
        raise UserError(f"{short(path)} is published with the project: write elsewhere")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path) and moves the file into place.

    A crash leaves the old file. Of two runs that write one file in the same moment the
    second is refused.

    Raises:
        UserError: if the file cannot be written, is being written by another run, or is
            one of the shipped files.
    """
    _refuse_shipped(path)
    temporary = path.with_name(f"{path.name}.part")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(temporary):
            try:
                write(temporary)
                # On the disk before the old file goes, even if power fails.
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch.save: the latter, on a full disk
        raise UserError(f"cannot write {path}: {reason(error)}") from None


@contextlib.contextmanager
def lock(path: Path, wanted: bool = True) -> Iterator[None]:
    """Keeps other runs from writing `path`; UserError if one does, which it names.

    The operating system frees the lock when the process ends, even after `kill -9`.
    """
    if not wanted or not fcntl:
        yield
        return

    place = path.with_name(f".{path.name}.lock")
    with place.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode() or "another run"
            raise UserError(
                f"{path} is being written by {holder}: "
                "wait for it to end, or write elsewhere"
            ) from None
        except OSError:
            pass  # a network drive that knows no locks

        # On a full disk the lock holds, without a name.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())

        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def require_writable(*folders: Path, files: Sequence[Path | None] = ()) -> None:
    """Makes the folders, and those of the files, before the work begins.

    Raises:
        UserError: if one of them cannot be written to.
    """
    for place in (*folders, *filter(None, files)):
        _refuse_shipped(place)
        is_file = place in files
        folder = place.parent if is_file else place

        # The names that are made from a file's are longer.
        prefix = f".{place.name}.resume.part.lock" if is_file else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.NamedTemporaryFile(dir=folder, prefix=prefix).close()
        except OSError as error:
            raise UserError(f"cannot write to {place}: {reason(error)}") from None
        if is_file and place.is_dir():
            raise UserError(f"cannot write to {place}: it is a folder")


def save_model(
    model: nn.Module,
    path: Path,
    *,
    step: int = 0,
    seed: int | None = None,
    metrics: dict | None = None,
    made_from: dict | None = None,
) -> None:
    """Writes one dict of plain types, from which `load_model` rebuilds the model.

    The model has a `config`; `step`, `seed` and `metrics` are those of the run that
    made it. `made_from` is the fingerprint of its data, which `require_same_data`
    compares.

    Raises:
        UserError: if the weights are not finite, or the file cannot be written.
    """
    if not is_finite(model.state_dict()):
        raise UserError(
            f"{path} is not written: the weights are not finite (try a lower --lr)"
        )

    checkpoint = {
        "kind": type(model).__name__.lower(),
        "format": FORMAT,
        "config": model.config,
        "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
        "step": step,
        "seed": seed,
        "metrics": metrics or {},
        "made_from": made_from or {},
        "versions": versions(),
    }
    write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))


def load_model(
    path: str | Path,
    kind: type[Model],
    device: str | torch.device = "cpu",
    hint: str = "",
) -> Model:
    """The `kind` of model that `save_model` wrote, in eval mode.

    `model.metrics` are those of its run, `model.made_from` is the fingerprint of its
    data.

    Args:
        path: the file.
        kind: is built by `kind.from_config(config)`, or by `kind(**config)` if it has
            none.
        device: where the model goes.
        hint: what makes such a file; it ends the message about a missing one.
    Raises:
        UserError: if the file is missing, damaged, or holds something else.

    Example:
        >>> from flows2d import Flow
        >>> flow = load_model(SHIPPED / "moons_realnvp.pt", Flow)
        >>> flow.sample(2).shape
        torch.Size([2, 2])
    """
    checkpoint = read_checkpoint(path, kind.__name__.lower(), hint)
    problem = f"its config builds no {kind.__name__}"
    try:
        build = getattr(kind, "from_config", lambda config: kind(**config))
        model = build(checkpoint["config"])

        # A model in float64 comes back as one.
        problem = "its weights do not fit its config"
        weights = checkpoint["state_dict"]
        dtypes = {w.dtype for w in weights.values() if w.is_floating_point()}
        if len(dtypes) == 1:
            model.to(*dtypes)
        model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {problem} ({reason(error)})") from None

    if not is_finite(weights):
        raise UserError(f"{path} is damaged: its weights are not finite")
    model.metrics = checkpoint.get("metrics", {})
    model.made_from = checkpoint.get("made_from", {})
    return model.to(device).eval()


def require_same_data(path: Path, made_from: dict, found: dict, advice: str) -> None:
    """Raises UserError, which names the difference, if a file was made from other data.

    Args:
        path: the file.
        made_from: the fingerprint in the file, plain types; empty where it has none.
        found: the fingerprint of the data at hand.
        advice: what to do; it ends the message.
    """
    if made_from == found:
        return
    if not made_from:
        raise UserError(
            f"{short(path)} does not say which data it was made from: {advice}"
        )

    if made_from.keys() != found.keys():
        own = "files of one's own"
        difference = f"{made_from.get('name', own)}, now {found.get('name', own)}"
    else:
        name = next(name for name in found if made_from[name] != found[name])
        difference = _difference(name, made_from[name], found[name])
    raise UserError(f"{short(path)} was made from other data ({difference}): {advice}")


def _difference(name: str, earlier: Any, now: Any) -> str:
    """How one entry of a fingerprint differs, in words."""
    if name in ("values", "pixels"):  # a hash
        return f"other {name}"
    if not (isinstance(earlier, list) and isinstance(now, list)):
        return f"{name} {earlier}, now {now}"

    # Short lists are shown, of long ones what is new and what is gone.
    earlier = list(map(str, earlier))
    now = list(map(str, now))
    if max(len(earlier), len(now)) < 10:
        return f"{name} {', '.join(earlier)}, now {', '.join(now)}"

    new = list(Counter(now) - Counter(earlier))
    gone = list(Counter(earlier) - Counter(now))
    parts = []
    if new:
        parts.append(f"{len(new)} new, such as {new[0]}")
    if gone:
        parts.append(f"{len(gone)} gone, such as {gone[0]}")
    return f"{name}: {', '.join(parts) or 'in another order'}"


def is_finite(weights: dict[str, torch.Tensor]) -> bool:
    """Whether there is no NaN and no infinity in a state dict."""
    return all(value.isfinite().all() for value in weights.values())


def read_checkpoint(path: str | Path, kind: str, hint: str = "") -> dict[str, Any]:
    """A checkpoint's dict, its tensors on the CPU.

    Raises:
        UserError: as `load_model` does.
    """
    path = Path(path)
    advice = f"; {hint}" if hint else ""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}{advice}")

    try:
        # torch.load does not look at the checksums.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        raise UserError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__})"
        ) from None

    found = checkpoint.get("kind") if isinstance(checkpoint, dict) else None
    if found != kind:
        is_ours = isinstance(found, str)
        holds = f"a checkpoint of kind {found!r}" if is_ours else "something else"
        raise UserError(f"{path} holds {holds}, not one of kind {kind!r}")

    # Files older than this entry are as the first format.
    found = checkpoint.get("format", 1)
    if found != FORMAT:
        raise UserError(
            f"{path} is of format {found}, "
            f"and this version reads format {FORMAT}{advice}"
        )
    return checkpoint


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON, in which NaN and infinity have no place."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_metrics(
    path: Path,
    metrics: dict,
    *,
    seconds: float,
    device: torch.device,
    seed: int,
) -> None:
    """Writes a run's metrics, and what they were measured on, as one JSON object."""
    run = {
        "seconds": round(seconds, 1),
        "device": str(device),
        "hardware": hardware(device),
        "seed": seed,
        "versions": versions(),
    }
    write_json(path, metrics | run)


def save_figure(figure: "Figure", folder: Path, name: str) -> None:
    """Writes a matplotlib Figure to folder/name and says so."""
    path = folder / name
    write = partial(figure.savefig, format="png", dpi=150, bbox_inches="tight")
    write_atomically(path, write)
    print(f"wrote {path}")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    names = ("torch", "torchvision", "normflows", "scikit-learn", "numpy")
    packages = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version()} | packages


def hardware(device: torch.device) -> str:
    """The processor in words, as a results table wants it: 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        if found := re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text()):
            name = found[1]
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"
