"""Pictures and masks of one's own, brought to what the model was trained on, with notes."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowlib.files import UserError, write_atomically

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
POLARITIES = ("auto", "white", "black")
INKS = ("auto", "light", "dark")


@dataclass
class Picture:
    """One picture as the model sees it: light ink on a dark ground, and what is missing."""

    path: Path
    image: Tensor  # uint8 (1, height, width)
    mask: Tensor  # bool (1, height, width), True where missing
    notes: list[str]  # what was converted, a sentence each


def find_pictures(paths: list[Path]) -> list[Path]:
    """The picture files that are named, and those in named folders; UserError if there is none."""
    found: list[Path] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if not files:
            raise UserError(f"no picture in the folder {path} (looked for {', '.join(ENDINGS)})")
        found += files
    return found


def find_mask(mask: str, picture: Path) -> Path | None:
    """The mask file for a picture: `mask`, or in a folder its namesake; None for a named kind."""
    file = Path(mask)
    if not file.is_dir():
        return file if file.exists() or (file.suffix and ":" not in mask) else None
    matches = [match for match in sorted(file.iterdir()) if match.stem == picture.stem]
    if not matches:
        wanted = f"it must be called {picture.stem}.png or the like"
        raise UserError(f"no mask for {picture.name} in the folder {file}: {wanted}")
    return matches[0]


def read_picture(
    path: Path,
    mask: Path | Tensor,
    shape: tuple[int, int, int],
    levels: int,
    *,
    ink: str = "auto",
    polarity: str = "auto",
) -> Picture:
    """Reads a picture and its mask and brings both to the model's size and grey levels.

    Args:
        path: a picture of any size and kind. Transparency is laid over white, 16 bits become 8.
        mask: a picture of the same size, or bool (1, height, width) of the model's size.
        shape, levels: of the model's images.
        ink: "light" or "dark". "auto" takes the rarer of the two among the observed pixels.
        polarity: the color of a mask file that marks what is missing. "auto" takes white, or black
            if white covers more than half. See `_read_mask` for colors and transparency.
    Raises:
        UserError: if a file is missing or not a picture, or if the mask does not fit.
    """
    notes: list[str] = []
    grey, missing = _to_grey(_open(path, notes), notes), None
    if isinstance(mask, Path):
        missing = _read_mask(mask, grey.shape, path, polarity, notes)
    _, height, width = shape
    seen = grey if missing is None or missing.all() else grey[~missing]
    if ink == "dark" or (ink == "auto" and float(np.median(seen)) > 0.5):
        grey = 1 - grey
        how_to_keep = "" if ink == "dark" else " (--ink light keeps it as it is)"
        notes.append(f"dark ink on a light ground: inverted{how_to_keep}")
    if missing is not None:
        grey = np.where(missing, 0.0, grey)  # the hole must not bleed out when the size changes
    if grey.shape != (height, width):
        notes.append(f"resized from {grey.shape[1]}x{grey.shape[0]} to {width}x{height}")
        grey = _resize(grey, width, height)
        if missing is not None:
            # A pixel is missing if a quarter of it is.
            missing = _resize(missing.astype(np.float32), width, height) > 0.25
    image = torch.from_numpy(np.rint(grey * (levels - 1)).clip(0, levels - 1).astype(np.uint8))
    hole = mask if missing is None else torch.from_numpy(missing)[None]
    if not hole.any():
        raise UserError(f"the mask {mask} is too thin: no pixel of the {width}x{height} is missing")
    return Picture(path, image[None], hole, notes)


def _to_grey(picture: Image.Image, notes: list[str]) -> np.ndarray:
    """Grey values in [0, 1], float32 (height, width)."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture, dtype=np.float32)
        integers = picture.mode != "F"
        notes.append("16-bit grey levels: brought to 8 bits" if integers else "floats: scaled")
        return (values / (65535.0 if integers else max(float(values.max()), 1e-9))).clip(0, 1)
    if _has_alpha(picture):
        picture = picture.convert("RGBA")
        if picture.getextrema()[3][0] < 255:
            notes.append("transparent parts: laid over white")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode not in ("L", "1"):
        notes.append("color: turned to grey")
    return np.asarray(picture.convert("L"), dtype=np.float32) / 255


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def _read_mask(path: Path, shape: tuple, picture: Path, polarity: str, notes: list) -> np.ndarray:
    """bool (height, width), True where missing.

    In a mask with transparent parts these, or the opaque ones, are missing: whichever are fewer.
    In any other the brightest color is white.
    """
    file = _open(path, notes)
    values = _to_grey(file, [])
    values = values / max(float(values.max()), 1e-9)
    if polarity == "auto" and _has_alpha(file):
        opaque = np.asarray(file.convert("RGBA"))[..., 3] > 127
        if not opaque.all():
            notes.append("the mask's transparency says what is missing")
            values = (opaque if opaque.mean() <= 0.5 else ~opaque).astype(np.float32)
    if values.shape != shape:
        sizes = [f"{width}x{height}" for height, width in (values.shape, shape)]
        both = f"is {sizes[0]}, the picture {picture} is {sizes[1]}"
        raise UserError(f"the mask {path} {both}: they must be of one size")
    if ((values > 0.02) & (values < 0.98)).any():
        notes.append("the mask is not only black and white: cut at half")
    white = values > 0.5
    if polarity == "auto" and white.mean() > 0.5 and not white.all():
        covers = f"white covers {white.mean():.0%} of the mask"
        notes.append(f"{covers}: took black as missing (--mask-polarity white says otherwise)")
        polarity = "black"
    missing = ~white if polarity == "black" else white
    if not missing.any():
        raise UserError(f"the mask {path} marks no pixel: --mask-polarity says which color does")
    return missing


def _open(path: Path, notes: list[str]) -> Image.Image:
    if not path.is_file():
        raise UserError(f"no file at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                if (frames := getattr(file, "n_frames", 1)) > 1:
                    notes.append(f"the first of {frames} frames")
                picture = ImageOps.exif_transpose(file)  # as a viewer shows it
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"{Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise UserError(f"{path} has more than {limit}: make it smaller first") from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = type(error).__name__  # UnidentifiedImageError is an OSError
        raise UserError(f"{path} cannot be read as a picture ({reason})") from None
    if min(picture.size) < 4:
        raise UserError(f"{path} is only {picture.size[0]}x{picture.size[1]}")
    if picture.mode == "F":
        values = np.asarray(picture)
        if not (np.isfinite(values).all() and values.max() > 0):
            raise UserError(f"{path} has values that are not finite, or none above 0")
    return picture


def _resize(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """To width x height, averaging; other proportions are first padded with dark."""
    rows, columns = values.shape
    scale = max(rows / height, columns / width)
    padded = np.zeros((max(rows, round(height * scale)), max(columns, round(width * scale))))
    top, left = (padded.shape[0] - rows) // 2, (padded.shape[1] - columns) // 2
    padded[top : top + rows, left : left + columns] = values
    method = Image.Resampling.BOX if scale > 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(padded.astype(np.float32)).resize((width, height), method))


def save_grey(path: Path, image: Tensor) -> None:
    """Writes grey values in [0, 1], (1, height, width), as an 8-bit PNG."""
    picture = Image.fromarray((image[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
