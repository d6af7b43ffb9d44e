"""Which part of a picture the model sees, and how it is cut out and put back."""

import numpy as np
from PIL import Image

Size = tuple[int, int]  # height, width
Frame = tuple[int, ...]  # a part of a picture: top, left, height, width
INK = 0.3  # grey values above it are ink


def _place_frame(center: np.ndarray, scale: float, size: Size) -> Frame:
    """A part with this center, `scale` pixels for each of the model's size."""
    extent = np.rint(scale * np.array(size))
    corner = np.rint(center - extent / 2)
    return tuple(int(number) for number in (*corner, *extent))


def whole_frame(shape: Size, size: Size) -> Frame:
    """All of a picture of this shape, in the proportions of the model's size."""
    sides = np.array(shape)
    return _place_frame(sides / 2, (sides / size).max(), size)


def find_frame(
    grey: np.ndarray, mask: np.ndarray, size: Size, crop: bool, notes: list[str]
) -> Frame:
    """What the model sees, in its proportions: all of a picture or, by `crop`, a part.

    The part is the one around ink and mask. MNIST's digits fill 20 of 28 pixels and
    have their center of mass in the middle. The model knows no digit that is much
    smaller or far from the middle.
    """
    everything = whole_frame(grey.shape, size)
    used = (grey > INK) | mask
    if not (crop and used.any()):
        return everything

    shape = np.array(grey.shape)
    sides = np.array(size)
    full_scale = (shape / sides).max()  # pixels of the picture for one of the model's
    first, last = _extent(used)
    scale = ((last - first) / sides).max() * 28 / 20
    smaller = scale <= 0.7 * full_scale and scale * size[0] >= 12
    scale = scale if smaller else full_scale

    # A missing pixel counts as MNIST's mean grey value: of MNIST's own images with
    # masks, this finds the center best (within 1.2 pixels for 14x14 squares; the
    # middle of ink and mask: within 2.0).
    mass = np.where(mask, 0.13, grey)
    y, x = (np.arange(n) + 0.5 for n in grey.shape)
    center = np.array([mass.sum(1) @ y, mass.sum(0) @ x]) / mass.sum()

    # Ink and mask keep a margin of two of the model's pixels, as nine of ten digits of
    # MNIST do.
    middle = (first + last) / 2
    reach = scale * (sides / 2 - 2)
    low = np.minimum(last - reach, middle)
    high = np.maximum(first + reach, middle)
    center = np.clip(center, low, high)

    off = (np.abs(center - shape / 2) > full_scale * sides / 8).any()
    if not (smaller or off):
        return everything
    part = "cropped to the part around ink and hole"
    what = part if smaller else "centered by the ink's mass"
    notes.append(f"{what} (--no-crop keeps the whole)")
    return _place_frame(center, scale, size)


def _extent(used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row and column of what is used, and those after the last."""
    left, top, right, bottom = Image.fromarray(used).getbbox()
    return np.array([top, left]), np.array([bottom, right])


def around(mask: np.ndarray) -> np.ndarray:
    """The rectangle around the missing pixels, twice as high and wide: bool."""
    near = np.zeros(mask.shape, bool)
    if mask.any():
        first, last = _extent(mask)
        margin = (last - first) // 2 + 2
        top, left = (first - margin).clip(min=0)
        bottom, right = last + margin
        near[top:bottom, left:right] = True
    return near


def cut(values: np.ndarray, frame: Frame, size: Size) -> np.ndarray:
    """The part `frame` of a picture at the model's size, float32.

    Where it gets smaller, pixels are averaged. Outside of the picture it is 0.
    """
    top, left, height, width = frame
    picture = Image.fromarray(values.astype(np.float32))
    part = picture.crop((left, top, left + width, top + height))
    larger = height > size[0]
    method = Image.Resampling.BOX if larger else Image.Resampling.BILINEAR
    return np.asarray(part.resize(size[::-1], method))


def paste(values: np.ndarray, frame: Frame, start: int, shape: Size) -> np.ndarray:
    """The opposite of `cut`, smoothly: rows of a picture, from `start` on, float32.

    The picture has `values` in its frame and 0 elsewhere. All rows of a photograph at
    once would need gigabytes.
    """
    top, left, height, width = frame
    rows, columns = shape
    first = max(start, top)
    last = min(start + rows, top + height)
    if first >= last:
        return np.zeros(shape, np.float32)

    lines, across = values.shape
    box = (0, (first - top) * lines / height, across, (last - top) * lines / height)
    picture = Image.fromarray(values.astype(np.float32))
    picture = picture.resize((width, last - first), Image.Resampling.BICUBIC, box)
    place = (-left, start - first, columns - left, start + rows - first)
    return np.asarray(picture.crop(place))


def paste_mask(mask: np.ndarray, frame: Frame, shape: Size) -> np.ndarray:
    """The opposite of `cut` for a mask, without smoothing: bool (rows, columns)."""
    top, left, height, width = frame
    picture = Image.new("1", shape[::-1])
    part = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    picture.paste(part, (left, top))
    return np.asarray(picture)


def two_figures(grey: np.ndarray, mask: np.ndarray) -> bool:
    """Whether two figures stand side by side.

    A hole belongs to the ink that it touches; if it touches both, ink and hole must be
    much wider than high. Of MNIST's own digits with holes, 1 in 2,000 is taken for two.
    """
    ink = (grey > INK) & ~mask
    if not ink.any():
        return False
    first, last = _extent(ink | mask)
    height, width = last - first
    proportion = width / height
    if proportion > 1 and _side_by_side(ink | mask, ink):
        return True
    return proportion > 1.45 and _side_by_side(ink, ink)


def _side_by_side(used: np.ndarray, ink: np.ndarray) -> bool:
    """Whether the two largest connected parts are alike, with a gap between them."""
    from scipy.ndimage import find_objects, label  # here, for it is slow to import

    parts, count = label(used, np.ones((3, 3)))
    if count < 2:
        return False
    amounts = np.bincount(parts[ink], minlength=count + 1)[1:]
    second, first = amounts.argsort()[-2:]
    boxes = find_objects(parts)
    rows, columns = zip(boxes[first], boxes[second])
    heights = [part.stop - part.start for part in rows]
    left, right = sorted(columns, key=lambda part: part.start)

    alike = 4 * amounts[second] > amounts[first] and 2 * min(heights) > max(heights)
    return bool(alike and right.start > left.stop)
