"""Files, each written whole or not at all: models, metrics, figures; and on what a run was made."""

import contextlib
import errno
import glob
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

try:
    import fcntl
except ImportError:  # Windows: there two runs on one checkpoint are not kept apart
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"  # what runs make here
# the weights that we publish: `make ship` alone writes there
SHIPPED = CHECKPOINTS / "shipped"
# of checkpoints and resume files; raise it when the code cannot read older ones
FORMAT = 2
# Of a checkpoint or a resume file, each a dict.
PARTS = ("config", "state_dict", "metrics", "made_from", "settings", "state")
Model = TypeVar("Model", bound=nn.Module)


class UserError(Exception):
    """A mistake that whoever runs the script can mend; its text says how."""


def readable(name: str) -> str:
    """A file's name as text that can be printed and drawn: what is not UTF-8 becomes "?"."""
    return name.encode(errors="replace").decode()


def find_checkpoint(name: str) -> Path:
    """checkpoints/NAME if a run has made it here, otherwise the shipped one of that name."""
    own = CHECKPOINTS / name
    return own if own.exists() else SHIPPED / name


def short(path: str | Path) -> str:
    """A path as it is printed: from the project's folder on, if it is in there."""
    path = Path(path)
    inside = path.resolve()
    return readable(
        str(inside.relative_to(ROOT) if inside.is_relative_to(ROOT) else path)
    )


def _refuse_shipped(path: Path) -> None:
    """Raises UserError if a path is among the shipped files."""
    if path.resolve().is_relative_to(SHIPPED):
        raise UserError(f"{short(path)} is published with the project: write elsewhere")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), then moves the file into place: a crash leaves the old one.

    Raises UserError if the file cannot be written, or is one of the shipped files.
    """
    path = Path(path)
    _refuse_shipped(path)
    # Two runs may write the same file, so each has a temporary one of its own.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        write(temporary)
        with temporary.open("rb") as file:
            # on the disk before the old file goes, even if power fails
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # torch.save raises the latter if the disk is full
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files of `path` whose processes were killed."""
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        number = temporary.suffixes[-2][1:]
        if fcntl and number.isdecimal():
            try:
                # sends nothing: it asks whether there is such a process
                os.kill(int(number), 0)
            except ProcessLookupError:
                temporary.unlink(missing_ok=True)
            except (OSError, OverflowError):
                pass  # somebody else's


@contextlib.contextmanager
def lock(path: Path, wanted: bool = True) -> Iterator[None]:
    """Keeps other runs from writing `path`; UserError if another one does, which it names.

    The operating system frees the lock when the process ends, even after `kill -9`.
    """
    if not wanted or not fcntl:
        yield
        return
    place = path.with_name(f".{path.name}.lock")
    with place.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().decode() or "another run"
            advice = "wait for it to end, or write elsewhere"
            raise UserError(f"{path} is being written by {holder}: {advice}") from None
        # a full disk: the lock holds, without a name
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def require_writable(*folders: Path, files: Sequence[Path | None] = ()) -> None:
    """Makes the folders, those of the files too; UserError if one of them cannot be written to."""
    files = [file for file in files if file]
    for place in (*folders, *files):
        folder = place.parent if place in files else place
        _refuse_shipped(place)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            if place in files and place.is_dir():
                raise IsADirectoryError(
                    errno.EISDIR, "it is a folder, and a file is needed"
                )
            if len(os.fsencode(place.name)) > 200:  # names made from it are longer
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        except OSError as error:
            raise UserError(
                f"cannot write to {place}: {error.strerror or error}"
            ) from None


def save_model(
    model: nn.Module, path: Path, *, step=0, seed=None, metrics=None, made_from=None
) -> None:
    """Writes one dict of plain types, from which `load_model` rebuilds the model.

    The model has a `config`; `step`, `seed` and `metrics` are those of the run that
    made it. `made_from` is the fingerprint of its data, which `require_same_data`
    compares.
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
        kind: is built by `kind.from_config(config)`, or by `kind(**config)` if it has
            none.
        hint: what makes such a file; it ends the message about a missing one.
    Raises:
        UserError: if the file is missing, damaged, or holds something else.

    Example:
        >>> flow = load_model("checkpoints/shipped/moons_realnvp.pt", Flow)
    """
    checkpoint, name = read_checkpoint(path, kind.__name__.lower(), hint), kind.__name__
    try:
        config, weights = checkpoint["config"], checkpoint["state_dict"]
        model = (
            kind.from_config(config) if hasattr(kind, "from_config") else kind(**config)
        )
        dtypes = {
            value.dtype for value in weights.values() if value.is_floating_point()
        }
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged: its config builds no {name} ({error})"
        ) from None
    if len(dtypes) == 1:  # a model in float64 comes back as one
        model.to(*dtypes)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = f"its weights do not fit its config ({str(error).splitlines()[0]})"
        raise UserError(f"{path} is damaged: {reason}") from None
    if not is_finite(weights):
        raise UserError(f"{path} is damaged: its weights are not finite")
    model.metrics = checkpoint.get("metrics", {})
    model.made_from = checkpoint.get("made_from", {})
    return model.to(device).eval()


def require_same_data(path: Path, made_from: dict, found: dict, advice: str) -> None:
    """Raises UserError, which names the difference, if a file was made from other data.

    Args:
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
        names = [data.get("name", "files of one's own") for data in (made_from, found)]
        difference = ", now ".join(map(str, names))
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

    earlier, now = [list(map(str, items)) for items in (earlier, now)]
    if max(len(earlier), len(now)) < 10:
        return f"{name} {', '.join(earlier)}, now {', '.join(now)}"
    new = [item for item in now if item not in set(earlier)]
    gone = [item for item in earlier if item not in set(now)]
    parts = [f"{len(new)} new, such as {new[0]}"] if new else []
    parts += [f"{len(gone)} gone, such as {gone[0]}"] if gone else []
    return f"{name}: {', '.join(parts) or 'in another order'}"


def is_finite(weights: dict[str, torch.Tensor]) -> bool:
    """Whether there is no NaN and no infinity in a state dict."""
    return all(bool(value.isfinite().all()) for value in weights.values())


def read_checkpoint(path: str | Path, kind: str, hint: str = "") -> dict[str, Any]:
    """A checkpoint's dict, its tensors on the CPU. Raises UserError as `load_model` does."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}" + (f"; {hint}" if hint else ""))
    try:
        # torch.load does not look at the checksums
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        reason = type(error).__name__
        raise UserError(f"{path} is damaged or not a checkpoint ({reason})") from None
    found = checkpoint.get("kind") if isinstance(checkpoint, dict) else None
    if not isinstance(found, str) or found != kind:
        holds = (
            f"a checkpoint of kind {found!r}"
            if isinstance(found, str)
            else "something else"
        )
        raise UserError(f"{path} holds {holds}, not one of kind {kind!r}")
    # files older than this entry are as the first format
    found = checkpoint.get("format", 1)
    if not isinstance(found, int) or found != FORMAT:
        problem = f"{path} is of format {found}, and this version reads format {FORMAT}"
        raise UserError(problem + (f": {hint}" if hint else ""))
    if not all(isinstance(checkpoint.get(name, {}), dict) for name in PARTS):
        raise UserError(
            f"{path} is damaged: one of its parts ({', '.join(PARTS)}) is no dict"
        )
    return checkpoint


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON, in which NaN and infinity have no place."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_metrics(
    path: Path, metrics: dict, *, seconds: float, device: torch.device, seed: int
) -> None:
    """Writes a run's metrics, and what they were measured on, as one JSON object."""
    run = {
        "seconds": round(seconds, 1),
        "device": str(device),
        "hardware": hardware(device),
    }
    write_json(path, {**metrics, **run, "seed": seed, "versions": versions()})


def save_figure(figure, folder: Path, name: str) -> None:
    """Writes a matplotlib Figure to folder/name and says so."""
    path = Path(folder) / name
    options = {"format": "png", "dpi": 150, "bbox_inches": "tight"}
    write_atomically(path, lambda temporary: figure.savefig(temporary, **options))
    print(f"wrote {path}")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    names = ("torch", "torchvision", "normflows", "scikit-learn", "numpy")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def hardware(device: torch.device) -> str:
    """The processor in words, as a results table wants it: 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(
            ": "
        )[2]
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"
