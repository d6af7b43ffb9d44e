"""Picture files: which there are, how they are opened, and their grey levels.

Functions that change what is in a file also return notes on it, a sentence each.
"""

import statistics
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flowlib.files import UserError

ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".pgm",
)
HIDDEN = ("@eaDir", "__MACOSX")  # besides names that start with a dot
PAPERS = {"white": 255, "black": 0}  # what transparent pictures are laid over
DEPTHS = (8, 10, 12, 14, 16)  # bits, that cameras have


def pictures_in(folder: Path, deep: bool = False) -> list[Path]:
    """The picture files in a folder, sorted; with `deep` also those in its sub-folders.

    Folders that are linked count, each folder once. Hidden files and folders do not,
    such as macOS's ._a.png and Jupyter's .ipynb_checkpoints.
    """
    found = []
    waiting = [folder]  # folders, the linked ones last
    entered = set(folder.resolve().parents)  # where a link would lead into a loop
    while waiting:
        here = waiting.pop(0)
        if here.resolve() in entered:
            print(f"{here} leads to a folder that is read already: skipped")
            continue
        entered.add(here.resolve())

        for entry in sorted(here.iterdir()):
            if entry.name.startswith(".") or entry.name in HIDDEN:
                continue
            if entry.is_dir():
                waiting.insert(len(waiting) if entry.is_symlink() else 0, entry)
            elif entry.suffix.lower() in ENDINGS:
                found.append(entry)
        if not deep:
            break
    return sorted(found)


def open_picture(path: Path) -> tuple[Image.Image, list[str]]:
    """The picture in a file, upright, of mode L, LA, RGB, RGBA, I;16 or F; notes.

    Raises UserError if there is no picture, or one of no use.
    """
    notes = []
    if not path.is_file():
        raise UserError(f"no file at {path}")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                if (count := getattr(file, "n_frames", 1)) > 1:
                    notes.append(f"the first of {count} frames")
                if file.mode in ("LA", "RGB", "RGBA") and ";16" in str(file.tile):
                    notes.append("16 bits for each color: read as 8")
                ImageOps.exif_transpose(file, in_place=True)  # as a viewer shows it
                picture = _plain(file)

    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels: "
            "reduce it first"
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        # UnidentifiedImageError is an OSError.
        raise UserError(
            f"{path} cannot be read as a picture ({type(error).__name__})"
        ) from None

    if min(picture.size) < 4:
        raise UserError(f"{path} is only {picture.size[0]}x{picture.size[1]}")
    if picture.mode == "F" and not np.isfinite(np.asarray(picture)).all():
        raise UserError(f"{path} has values that are not finite")
    return picture, notes


def _plain(picture: Image.Image) -> Image.Image:
    """The same picture in a mode that a PNG can hold, or in floats."""
    mode = picture.mode
    if mode in ("F", "I;16"):
        return picture
    if mode.startswith("I"):
        levels = np.asarray(picture).clip(0, 65535)
        return Image.fromarray(levels.astype(np.uint16))

    if picture.has_transparency_data:
        plain = "LA" if mode in ("L", "LA", "La") else "RGBA"
    else:
        plain = "L" if mode in ("1", "L") else "RGB"
    if mode == plain:
        return picture
    converted = picture.convert(plain)
    if plain == "RGB" and mode != "P":
        converted.info.pop("icc_profile", None)  # it describes other colors than these
    return converted


def grey_levels(picture: Image.Image) -> np.ndarray:
    """The grey levels of a picture, (rows, columns): uint8, uint16 or float32.

    Where parts are transparent: these and the opacity, uint8 (rows, columns, 2).
    """
    if picture.mode not in ("LA", "RGBA"):
        return np.asarray(picture.convert("L") if picture.mode == "RGB" else picture)
    levels = np.asarray(picture.convert("LA"))
    return levels[..., 0] if levels[..., 1].min() == 255 else levels


def choose_paper(levels: np.ndarray) -> str:
    """What grey levels with their opacity, (..., 2), are laid over: a key of PAPERS.

    It is black if nothing that is visible is dark: over white it would be lost.
    """
    visible = levels[..., 0][levels[..., 1] > 0]
    bright = visible.size > 0 and np.quantile(visible, 0.005) > 160
    return "black" if bright else "white"


def lay_over(levels: np.ndarray, paper: str) -> np.ndarray:
    """Grey levels with their opacity over paper, float32 (rows, columns)."""
    opacity = levels[..., 1] / np.float32(255)
    return levels[..., 0] * opacity + PAPERS[paper] * (1 - opacity)


def read_alike(folder: Path, paths: list[Path]) -> np.ndarray:
    """The grey levels of a folder's pictures, uint8 (N, rows, columns).

    All are treated alike: transparent ones are laid over one paper, 16-bit ones have
    one depth, floats one range. Printed lines say what was done. Raises UserError if
    the pictures are not of one size, or one of them cannot be read.
    """
    notes = []
    levels = []
    for path in paths:
        picture, said = open_picture(path)
        notes += said
        if picture.mode in ("RGB", "RGBA"):
            notes.append("color, turned to grey")
        levels.append(grey_levels(picture))
    shape = _common_shape(paths, levels)

    paper, papers = _common_paper([v for v in levels if v.ndim == 3])
    bits, depths = _common_depth([v for v in levels if v.dtype == np.uint16])
    white, ranges = _common_range([v for v in levels if v.dtype == np.float32], folder)
    notes += papers + depths + ranges

    images = np.empty((len(paths), *shape), np.uint8)
    for image, values in zip(images, levels):
        if values.ndim == 3:
            values = lay_over(values, paper)
        elif values.dtype == np.uint16:
            values = values >> (bits - 8)
        elif values.dtype == np.float32:
            values = 255 * (values / white)
        image[:] = np.rint(values)

    for note, count in Counter(notes).items():
        print(f"{folder}: {count} of {len(paths)} pictures: {note}")
    if (images == images[0]).all():
        print(f"{folder}: all pictures are equal")
    elif len(found := np.unique(images).tolist()) == 2:
        print(f"{folder}: the pictures have no grey levels but {found}")
    return images


def _common_shape(paths: list[Path], levels: list[np.ndarray]) -> tuple[int, int]:
    """The shape of nearly all pictures; UserError names one that has another."""
    shapes = [values.shape[:2] for values in levels]
    shape = statistics.mode(shapes)
    for path, own in zip(paths, shapes):
        if own != shape:
            sizes = "{}x{} and {}x{}".format(*shape, *own)
            raise UserError(f"{path}: the pictures must be of one size, not {sizes}")
    return shape


def _common_paper(transparent: list[np.ndarray]) -> tuple[str, list[str]]:
    """The paper of all transparent pictures: black if most of them are bright."""
    own = [choose_paper(values) for values in transparent]
    paper = max(PAPERS, key=own.count)  # of two equals the first
    over = f"transparent, laid over {paper}"
    doubt = f"{over}, though it may be lost there"
    return paper, [over if one == paper else doubt for one in own]


def _common_depth(deep: list[np.ndarray]) -> tuple[int, list[str]]:
    """The fewest bits of DEPTHS that hold all the grey levels."""
    highest = int(np.max(deep, initial=0))
    bits = next(bits for bits in DEPTHS if highest < 2**bits)
    return bits, [f"grey levels up to {highest}, read as {bits}-bit ones"] * len(deep)


def _common_range(floats: list[np.ndarray], folder: Path) -> tuple[float, list[str]]:
    """The float that is white: 1, 255 for integers, or the highest that occurs."""
    highest = float(np.max(floats, initial=0))
    if np.min(floats, initial=0) < 0:
        raise UserError(f"{folder}: pictures of floats must not have values below 0")
    integers = all((values == np.rint(values)).all() for values in floats)
    white = 255.0 if integers and 1 < highest <= 255 else max(1.0, highest)
    note = f"floats up to {highest:g}, {white:g} is taken as white"
    return white, [note] * len(floats)
