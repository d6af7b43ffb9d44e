"""Pictures and masks of one's own, brought to what the model was trained on, with notes."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowlib.files import UserError, write_atomically
from flowlib.images.frames import Frame, cut, find_frame, paste
from flowlib.images.tones import Tones, find_tones

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
    whole: np.ndarray  # the picture itself in its own size, grey values in [0, 1], (rows, columns)
    painted: np.ndarray | None  # its mask in that size, bool; None if the mask was not a picture
    tones: Tones
    frame: Frame  # the part of `whole` that the model sees

    def restore(self, filled: Tensor) -> np.ndarray:
        """The picture itself, filled where it is missing: uint8 (rows, columns).

        `filled` is what the model sees, (1, height, width) with values in [0, 1]. It is drawn with
        the picture's own ground and ink.
        """
        fill = paste(filled[0].numpy(), self.frame, self.whole.shape, Image.Resampling.BICUBIC)
        hole = self.painted
        if hole is None:
            mask = self.mask[0].numpy()
            hole = paste(mask, self.frame, self.whole.shape, Image.Resampling.NEAREST) > 0.5
        drawn = np.where(hole, self.tones.draw(fill.clip(0, 1)), self.whole)
        return np.rint(255 * drawn.clip(0, 1)).astype(np.uint8)


def find_pictures(paths: list[Path]) -> list[Path]:
    """The picture files that are named, and those in named folders; UserError if there is none."""
    found: list[Path] = []
    for path in paths:
        files = pictures_in(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"no picture in the folder {path} (looked for {', '.join(ENDINGS)})")
        found += files
    return found


def pictures_in(folder: Path, pattern: str = "*") -> list[Path]:
    """The picture files in a folder, in order, without hidden ones such as macOS's ._a.png.

    The pattern "**/*" also finds those in its sub-folders.
    """
    visible = (file for file in folder.glob(pattern) if not file.name.startswith("."))
    return sorted(file for file in visible if file.suffix.lower() in ENDINGS)


def find_mask(mask: str, picture: Path) -> Path | None:
    """The mask file for a picture: `mask`, or in a folder its namesake; None for a named kind."""
    file = Path(mask)
    if not file.is_dir():
        return file if file.exists() or (file.suffix and ":" not in mask) else None
    if file.resolve() == picture.parent.resolve():
        raise UserError(f"{file} holds the pictures: their masks need a folder of their own")
    matches = [match for match in pictures_in(file) if match.stem == picture.stem]
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
    crop: bool = True,
) -> Picture:
    """Reads a picture and its mask and brings both to the model's size and grey levels.

    The ground becomes 0 and the ink 1, as in MNIST, be the paper grey or shaded.

    Args:
        path: a picture of any size and kind. Transparency is laid over white, or over black if
            all of the picture is bright. 16 bits become 8.
        mask: a picture of the same size, or bool (1, height, width) of the model's size.
        shape, levels: of the model's images.
        ink: "light", "dark" or "auto"; see `find_tones`.
        polarity: the color of a mask file that marks what is missing. "auto" takes white, or black
            if white covers more than half. See `_read_mask` for colors and transparency.
        crop: where ink and hole fill less than half of the frame or lie far from its middle, sees
            only the part around them. See `find_frame`.
    Raises:
        UserError: if a file is missing or not a picture, or if the mask does not fit.
    """
    notes: list[str] = []
    whole, missing = _to_grey(open_picture(path, notes), notes), None
    if isinstance(mask, Path):
        missing = _read_mask(mask, polarity, notes)
        if missing.shape != whole.shape:
            sizes = [f"{columns}x{rows}" for rows, columns in (missing.shape, whole.shape)]
            both = f"is {sizes[0]}, the picture {path} is {sizes[1]}"
            raise UserError(f"the mask {mask} {both}: they must be of one size")
    painted = missing
    seen = ~missing if missing is not None and not missing.all() else np.ones(whole.shape, bool)
    tones = find_tones(whole, seen, ink, notes)
    grey = tones.normalize(whole)
    if missing is not None:
        grey = np.where(missing, 0.0, grey)  # the hole must not bleed out when the size changes
    _, height, width = shape
    frame = find_frame(grey, missing, (height, width), crop, notes)
    if frame != (0, 0, height, width) or grey.shape != (height, width):
        if grey.shape != (height, width):
            notes.append(f"resized from {grey.shape[1]}x{grey.shape[0]} to {width}x{height}")
        grey = _resize(cut(grey, frame), width, height)
        if missing is not None:
            missing = _shrink_mask(cut(missing, frame), width, height)
    image = torch.from_numpy(np.rint(grey * (levels - 1)).clip(0, levels - 1).astype(np.uint8))
    hole = mask if missing is None else torch.from_numpy(missing)[None]
    if hole.all():
        notes.append("nothing of the picture is known: what is filled in is any image")
    return Picture(path, image[None], hole, notes, whole, painted, tones, frame)


def _shrink_mask(missing: np.ndarray, width: int, height: int) -> np.ndarray:
    """A pixel is missing if a quarter of it is; so is one that a scratch runs through."""
    share = _resize(missing.astype(np.float32), width, height)
    large = share > 0.25
    padded = np.pad(large, 1)
    around = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3)) > 0
    return large | ((share > 0) & ~around)


def _to_grey(picture: Image.Image, notes: list[str]) -> np.ndarray:
    """Grey values in [0, 1], float32 (height, width)."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture, dtype=np.float32)
        integers = picture.mode != "F"
        notes.append("16-bit grey levels: brought to 8 bits" if integers else "floats: scaled")
        return (values / (65535.0 if integers else max(float(values.max()), 1e-9))).clip(0, 1)
    if _has_alpha(picture):
        picture = picture.convert("RGBA")
        pixels = np.asarray(picture)  # (rows, columns, 4)
        alpha, light = pixels[..., 3], pixels[..., :3].mean(2)
        # Strokes of which none is dark would be lost over white.
        bright = alpha.any() and np.quantile(light[alpha > 0], 0.005) > 160
        paper = "black" if bright else "white"
        if alpha.min() < 255:
            notes.append(f"transparent parts: laid over {paper}")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, paper), picture)
    if picture.mode not in ("L", "1"):
        notes.append("color: turned to grey")
    return np.asarray(picture.convert("L"), dtype=np.float32) / 255


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def read_mask(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A mask file alone, at the model's size: bool (1, height, width), True where missing."""
    missing = _read_mask(path, "auto", [])
    frame = find_frame(missing, missing, shape[1:], False, [])
    return torch.from_numpy(_shrink_mask(cut(missing, frame), shape[2], shape[1]))[None]


def _read_mask(path: Path, polarity: str, notes: list[str]) -> np.ndarray:
    """bool (height, width), True where missing.

    In a mask with transparent parts these, or the opaque ones, are missing: whichever are fewer.
    In any other the brightest color is white.
    """
    file = open_picture(path, notes)
    values = _to_grey(file, [])
    values = values / max(float(values.max()), 1e-9)
    if polarity == "auto" and _has_alpha(file):
        opaque = np.asarray(file.convert("RGBA"))[..., 3] > 127
        if not opaque.all():
            notes.append("the mask's transparency says what is missing")
            values = (opaque if opaque.mean() <= 0.5 else ~opaque).astype(np.float32)
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


def open_picture(path: Path, notes: list[str]) -> Image.Image:
    """The picture in a file, upright; UserError if there is none, or one of no use."""
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
    """To width x height, averaging where it gets smaller."""
    larger = values.shape[0] > height
    method = Image.Resampling.BOX if larger else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), method))


def save_grey(path: Path, image: Tensor) -> None:
    """Writes grey values in [0, 1], (1, height, width), as an 8-bit PNG."""
    picture = Image.fromarray((image[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
