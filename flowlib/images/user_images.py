"""Pictures and masks of one's own, brought to what the model knows, with notes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from flowlib.files import UserError, write_atomically
from flowlib.images.frames import (
    Frame,
    around,
    cut,
    find_frame,
    paste,
    paste_mask,
    two_figures,
)
from flowlib.images.pictures import (
    ENDINGS,
    choose_paper,
    grey_levels,
    lay_over,
    open_picture,
    pictures_in,
)
from flowlib.images.tones import Colors, Tones, find_tones

TWO_FIGURES = (
    "two separate figures: a model of single figures takes them for one "
    "(crop the picture to one of them)"
)
POLARITIES = ("auto", "white", "black")
INKS = ("auto", "light", "dark")
WORKING_SIDE = 1000  # pixels: of larger pictures, a copy of some such size is looked at
BAND = 64  # rows of a picture that are drawn at once
FEW = 200_000  # pixels are enough to fit the colors
Shape = tuple[int, int, int]  # of the model's images: 1, height, width


@dataclass
class Picture:
    """One picture as the model sees it, light ink on a dark ground, and as it is."""

    image: Tensor  # uint8 (1, height, width)
    mask: Tensor  # bool (1, height, width), True where missing
    notes: list[str]  # what was converted, a sentence each
    original: Image.Image  # in its own size, colors and bits
    full_mask: np.ndarray  # bool (rows, columns), True where `original` is missing
    tones: Tones  # of a copy that is smaller by `factor`
    colors: Colors
    frame: Frame  # the part of that copy that the model sees
    factor: int

    def restore(self, filled: Tensor) -> Image.Image:
        """The picture itself, its missing pixels drawn with its own ground and ink.

        `filled` is what the model sees, (1, height, width) with values in [0, 1]. It is
        drawn into `original`: a copy of a photograph would need as much memory again.
        """
        columns, height = self.original.size
        tones = self.tones
        for top in range(0, height, BAND):
            rows = range(height)[top : top + BAND]
            mask = self.full_mask[top : rows.stop]
            if not mask.any():
                continue
            part = (self.factor, rows, columns)
            fill = paste(filled[0].numpy(), self.frame, *part)[mask]
            ground = paste(tones.ground, (0, 0, *tones.ground.shape), *part)[mask]
            grey = ground + fill.clip(0, 1) * (tones.ink - ground)

            place = (0, top, columns, rows.stop)
            band = np.array(self.original.crop(place))
            drawn = np.rint(np.iinfo(band.dtype).max * self.colors.draw(grey))
            band[mask] = drawn.reshape(band[mask].shape)
            self.original.paste(Image.fromarray(band), place)
        return self.original


def find_pictures(paths: list[Path]) -> list[Path]:
    """The picture files that are named, and those in named folders.

    Raises UserError if a folder holds none.
    """
    found = []
    for path in paths:
        files = pictures_in(path) if path.is_dir() else [path]
        if not files:
            raise UserError(
                f"no picture in the folder {path} (looked for {', '.join(ENDINGS)})"
            )
        found += files
    return found


def find_mask(mask: str, picture: Path) -> Path | None:
    """The mask file for a picture: `mask`, or in a folder its namesake.

    None if `mask` is one of the named kinds.
    """
    file = Path(mask)
    if not file.is_dir():
        return file if file.exists() or (file.suffix and ":" not in mask) else None

    if file.resolve() == picture.parent.resolve():
        raise UserError(
            f"{file} holds the pictures: their masks need a folder of their own"
        )
    for found in pictures_in(file):
        if found.stem == picture.stem:
            return found

    raise UserError(
        f"no mask for {picture.name} in the folder {file}: "
        f"it must be called {picture.stem}.png or the like"
    )


def read_picture(
    path: Path,
    mask: Path | Tensor,
    shape: Shape,
    levels: int,
    *,
    ink: str = "auto",
    polarity: str = "auto",
    crop: bool = True,
) -> Picture:
    """Reads a picture and its mask, and brings both to the model's size and levels.

    The ground becomes 0 and the ink 1, as in MNIST, be the paper grey or shaded.

    Args:
        path: a picture of any kind and size. Transparency is laid over white, or over
            black if all of the picture is bright.
        mask: a picture of the same size, or bool (1, height, width) of the model's.
        shape, levels: of the model's images.
        ink: one of INKS; see `find_tones`.
        polarity: the color of a mask file that marks what is missing. "auto" takes
            white, or black if white covers more than half. See `_open_mask`.
        crop: sees only the part around ink and mask where that helps; see `find_frame`.
    Raises:
        UserError: if a file is missing or no picture, or if the mask does not fit.
    """
    picture, notes = _open_integers(path)
    size = (picture.height, picture.width)
    small = shape[1:]
    full_mask = np.zeros(size, bool)
    if isinstance(mask, Path):
        full_mask, said = _open_mask(mask, polarity, picture.size)
        notes += said

    # Ground, ink and frame are found in a smaller copy.
    copy, factor = _reduce(picture)
    share = _missing_share(full_mask)
    missing = share > 0
    seen = ~missing | missing.all()
    light, said = _to_grey(copy, seen)
    tones, more = find_tones(light, seen, ink)
    grey = np.where(missing, 0.0, tones.normalize(light))  # it must not bleed out
    frame, others = find_frame(grey, missing, small, crop)
    notes += said + more + others
    if two_figures(grey, missing):
        notes.append(TWO_FIGURES)
    if size != small:
        notes.append("resized from {1}x{0} to {3}x{2}".format(*size, *small))

    values = np.rint(cut(grey, frame, small) * (levels - 1)).astype(np.uint8)
    image = torch.from_numpy(values)[None]
    if isinstance(mask, Path):
        mask = _shrink_mask(cut(share, frame, small))
    else:
        full_mask = paste_mask(mask[0].numpy(), frame, factor, size)
        missing = _missing_share(full_mask) > 0
    if mask.all():
        notes.append("nothing of the picture is known: what is filled in is any image")
    colors = _find_nearby_colors(copy, light, grey, missing)
    return Picture(image, mask, notes, picture, full_mask, tones, colors, frame, factor)


def _open_integers(path: Path) -> tuple[Image.Image, list[str]]:
    """The picture in a file, and notes; floats become 16-bit grey levels."""
    picture, notes = open_picture(path)
    if picture.mode != "F":
        return picture, notes
    values = np.asarray(picture)
    highest = float(values.max())
    if highest <= 0:
        raise UserError(f"{path} has no value above 0")
    notes.append(f"floats: 0 ... {highest:g} scaled to 16 bits, when filled too")
    levels = np.rint(values / highest * 65535).clip(0)
    return Image.fromarray(levels.astype(np.uint16)), notes


def _reduce(picture: Image.Image) -> tuple[Image.Image, int]:
    """A copy that is smaller by a whole factor if the picture is large; the factor.

    Each block of factor x factor pixels is averaged.
    """
    factor = max(1, max(picture.size) // WORKING_SIDE)
    if picture.mode != "I;16":
        return picture.reduce(factor), factor
    # Pillow does not average 16 bits.
    return picture.convert("I").reduce(factor).convert("I;16"), factor


def _missing_share(mask: np.ndarray) -> np.ndarray:
    """How much of each of the copy's pixels is missing, in [0, 1]."""
    copy, _ = _reduce(Image.fromarray(mask.astype(np.float32)))
    return np.asarray(copy)


def _to_grey(picture: Image.Image, seen: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Grey values in [0, 1], float32 (height, width), and notes.

    `seen` are the observed pixels.
    """
    notes = []
    levels = grey_levels(picture)
    highest = np.iinfo(levels.dtype).max
    if highest > 255:
        notes.append("16-bit grey levels: brought to 8 bits")
    if levels.ndim == 3:
        paper = choose_paper(levels[seen])
        notes.append(f"transparent parts: laid over {paper}")
        levels = lay_over(levels, paper)
    if picture.mode in ("RGB", "RGBA"):
        notes.append("color: turned to grey")
    return levels.astype(np.float32) / highest, notes


def _find_nearby_colors(
    copy: Image.Image,
    light: np.ndarray,
    grey: np.ndarray,
    mask: np.ndarray,
) -> Colors:
    """The colors of the observed pixels around the mask; of all, if no ink is there.

    `light` are the copy's own grey values; in `grey` the ground is 0 and the ink 1.
    """
    near = around(mask) & ~mask
    if not near.any() or np.ptp(grey[near]) < 0.5:
        near = ~mask

    step = max(1, near.sum() // FEW)
    levels = np.asarray(copy).reshape(*light.shape, -1)[near][::step]  # (N, channels)
    return Colors.fit(levels / np.iinfo(levels.dtype).max, light[near][::step])


def read_mask(path: Path, shape: Shape) -> Tensor:
    """A mask file alone, at the model's size: bool (1, height, width)."""
    mask, _ = _open_mask(path, "auto")
    share = _missing_share(mask)
    frame, _ = find_frame(share, share > 0, shape[1:], crop=False)
    return _shrink_mask(cut(share, frame, shape[1:]))


def _open_mask(
    path: Path,
    polarity: str,
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """A mask file, bool (height, width), True where missing, and notes.

    `size` is the picture's. In a mask with transparent parts these, or the opaque ones,
    are missing: whichever are fewer. In any other the brightest color is white.
    """
    picture, notes = open_picture(path)
    if size and picture.size != size:
        found = "{}x{}, its picture {}x{}".format(*picture.size, *size)
        raise UserError(f"the mask {path} is {found}: they must be of one size")

    levels = grey_levels(picture)
    if levels.ndim == 3:
        opaque = levels[..., 1] > 127
        if polarity == "auto" and not opaque.all():
            notes.append("the mask's transparency says what is missing")
            levels = opaque if opaque.mean() <= 0.5 else ~opaque
        else:
            levels = lay_over(levels, choose_paper(levels))
    highest = max(float(levels.max()), 1e-9)
    if ((levels > 0.02 * highest) & (levels < 0.98 * highest)).any():
        notes.append("the mask is not only black and white: cut at half")

    missing = levels > 0.5 * highest
    if polarity == "auto" and 0.5 < missing.mean() < 1:
        notes.append(
            f"white covers {missing.mean():.0%} of the mask: took black as missing "
            "(--mask-polarity white says otherwise)"
        )
        polarity = "black"

    if polarity == "black":
        missing = ~missing
    if not missing.any():
        raise UserError(
            f"the mask {path} marks no pixel: --mask-polarity says which color does"
        )
    return missing, notes


def _shrink_mask(share: np.ndarray) -> Tensor:
    """The mask, bool (1, height, width), of how much of each pixel is missing.

    A pixel is missing if a quarter of it is, or if a scratch runs through it.
    """
    large = share > 0.25
    near = Image.fromarray(large).filter(ImageFilter.MaxFilter(3))
    scratch = (share > 0) & ~np.asarray(near)
    return torch.from_numpy(large | scratch)[None]


def save_grey(path: Path, image: Tensor) -> None:
    """Writes grey values in [0, 1], (1, height, width), as an 8-bit PNG."""
    levels = (image[0].clamp(0, 1) * 255).round().byte()
    save_picture(path, Image.fromarray(levels.numpy()))


def save_picture(path: Path, picture: Image.Image) -> None:
    """Writes a picture as a PNG, bit for bit and with its color profile."""
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
