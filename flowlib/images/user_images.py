"""A user's own pictures and masks: read, checked, and brought to what the model was trained on, with a word on every conversion."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flowlib.files import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
POLARITIES = ("auto", "white", "black")
INKS = ("auto", "light", "dark")


@dataclass
class Picture:
    """One picture as the model sees it: light ink on a dark ground, its grey levels and what is missing."""

    name: str
    image: Tensor  # uint8 (1, height, width)
    mask: Tensor  # bool (1, height, width), True where missing
    notes: list[str]  # what was converted, a sentence each


def find_pictures(paths: list[Path]) -> list[Path]:
    """The picture files that are named, those in a folder in the order of their names. Raises UserError if there is none."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
            if not inside:
                raise UserError(f"no picture in the folder {path} (looked for {', '.join(ENDINGS)})")
            found += inside
        else:
            found.append(path)
    return found


def read_picture(
    path: Path, mask: Path | Tensor, shape: tuple[int, int, int], levels: int, *, ink: str = "auto", polarity: str = "auto"
) -> Picture:
    """Reads a picture and its mask and brings both to the model's size and grey levels.

    Args:
        path: a picture of any size and kind; transparency is laid over white, 16 bits become 8.
        mask: a picture of the same size, or bool (1, height, width) of the model's size, True where missing.
        shape, levels: of the model's images.
        ink: "light" or "dark", of the picture; "auto" takes the rarer of the two, seen where it is known.
        polarity: which colour of a mask file marks what is missing; "auto" is white, or black if white covers more than half.
    Raises:
        UserError: if a file is missing or not a picture, or the mask does not fit or leaves nothing known.
    """
    notes: list[str] = []
    grey, size = _read_grey(path, notes)
    missing = _read_mask(mask, size, path, polarity, notes) if isinstance(mask, Path) else None
    _, height, width = shape
    seen = grey if missing is None or missing.all() else grey[~missing]
    dark_ink = ink == "dark" or (ink == "auto" and float(np.median(seen)) > 0.5)
    if dark_ink:
        grey = 1 - grey
        notes.append("dark ink on a light ground: inverted" + ("" if ink == "dark" else " (--ink light keeps it as it is)"))
    if missing is not None:
        grey = np.where(missing, 0.0, grey)  # what lies under the hole must not bleed into its neighbours when the size changes
    if size != (width, height):
        notes.append(f"resized from {size[0]}x{size[1]} to {width}x{height}")
        grey = _resize(grey, width, height)
        if missing is not None:
            missing = _resize(missing.astype(np.float32), width, height) > 0.25  # a pixel with a quarter of it missing is missing
    image = torch.from_numpy(np.rint(grey * (levels - 1)).clip(0, levels - 1).astype(np.uint8))[None]
    mask = torch.from_numpy(missing)[None] if missing is not None else mask
    return Picture(path.stem, image, mask, notes)


def _read_grey(path: Path, notes: list[str]) -> tuple[np.ndarray, tuple[int, int]]:
    """Grey levels in [0, 1], float32 (height, width), and (width, height)."""
    picture = _open(path)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float32)
        top = 65535.0 if picture.mode.startswith("I") else max(float(values.max()), 1e-9)
        notes.append("16-bit grey levels: brought to 8 bits" if picture.mode.startswith("I") else "floating-point grey levels: scaled")
        return (values / top).clip(0, 1), picture.size
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        if picture.getextrema()[3][0] < 255:
            notes.append("transparent parts: laid over white")
        picture = Image.alpha_composite(white, picture)
    if picture.mode not in ("L", "1"):
        notes.append(f"{'colour' if picture.mode in ('RGB', 'RGBA', 'P', 'CMYK', 'YCbCr') else picture.mode}: turned to grey")
    return np.asarray(picture.convert("L"), dtype=np.float32) / 255, picture.size


def _read_mask(path: Path, size: tuple[int, int], picture: Path, polarity: str, notes: list[str]) -> np.ndarray:
    """bool (height, width), True where missing."""
    values, mask_size = _read_grey(path, [])
    if mask_size != size:
        raise UserError(
            f"the mask {path} is {mask_size[0]}x{mask_size[1]}, the picture {picture} is {size[0]}x{size[1]}: both must be of one size"
        )
    if ((values > 0.02) & (values < 0.98)).any():
        notes.append("the mask is not black and white alone: cut at half")
    white = values > 0.5
    if polarity == "auto" and white.mean() > 0.5 and not white.all():
        notes.append(f"white covers {white.mean():.0%} of the mask: took black as missing (--mask-polarity white says otherwise)")
        polarity = "black"
    missing = ~white if polarity == "black" else white
    if not missing.any():
        raise UserError(f"the mask {path} marks nothing as missing: --mask-polarity says which colour does")
    return missing


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise UserError(f"no file at {path}")
    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({type(error).__name__})") from None
    if min(picture.size) < 4:
        raise UserError(f"{path} is only {picture.size[0]}x{picture.size[1]}")
    return picture


def _resize(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """To width x height, averaging; a picture of other proportions is first set into the middle of a dark one that fits."""
    rows, columns = values.shape
    scale = max(rows / height, columns / width)
    padded = np.zeros((max(rows, round(height * scale)), max(columns, round(width * scale))), dtype=np.float32)
    top, left = (padded.shape[0] - rows) // 2, (padded.shape[1] - columns) // 2
    padded[top : top + rows, left : left + columns] = values
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.BOX if scale > 1 else Image.Resampling.BILINEAR))


def save_grey(path: Path, image: Tensor) -> None:
    """Writes grey levels in [0, 1], (1, height, width), as an 8-bit PNG."""
    values = (image[0].clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(values.cpu().numpy()).save(path, format="PNG")
