"""Which part of a picture the model sees, and how it is cut out and put back."""

import numpy as np
from PIL import Image

Frame = tuple[int, int, int, int]  # a part of a picture: top, left, height, width
INK = 0.3  # grey values above it are ink


def find_frame(
    grey: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int],
    crop: bool,
) -> tuple[Frame, list[str]]:
    """What the model sees, in its proportions: all of the picture or a part; notes.

    The part is the one around ink and mask. MNIST's digits fill 20 of 28 pixels and
    have their center of mass in the middle. The model knows no digit that is much
    smaller or far from the middle.
    """
    shape = np.array(grey.shape)
    sides = np.array(size)
    full_scale = (shape / sides).max()  # pixels of the picture for one of the model's

    def frame(center: np.ndarray, scale: float) -> Frame:
        extent = np.rint(scale * sides).astype(int)
        corner = np.rint(center - extent / 2).astype(int)
        return (*corner.tolist(), *extent.tolist())

    everything = frame(shape / 2, full_scale)
    used = (grey > INK) | mask
    if not crop or not used.any():
        return everything, []

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
    center = center.clip(low, high)

    off = (np.abs(center - shape / 2) > full_scale * sides / 8).any()
    if not (smaller or off):
        return everything, []
    part = "cropped to the part around ink and hole"
    what = part if smaller else "centered by the ink's mass"
    return frame(center, scale), [f"{what} (--no-crop keeps the whole)"]


def _extent(used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row and column of what is used, and those after the last: (2,) each."""
    places = np.argwhere(used)
    return places.min(0), places.max(0) + 1


def around(mask: np.ndarray) -> np.ndarray:
    """The rectangle around the missing pixels, twice as high and wide: bool."""
    near = np.zeros(mask.shape, bool)
    if mask.any():
        first, last = _extent(mask)
        margin = (last - first) // 2 + 2
        top, left = np.maximum(first - margin, 0)
        bottom, right = last + margin
        near[top:bottom, left:right] = True
    return near


def cut(values: np.ndarray, frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """The part `frame` of a picture as the model sees it: float32, (height, width).

    It is averaged where it gets smaller. Outside of the picture it is 0.
    """
    top, left, height, width = frame
    picture = Image.fromarray(values.astype(np.float32))
    part = picture.crop((left, top, left + width, top + height))
    larger = height > size[0]
    method = Image.Resampling.BOX if larger else Image.Resampling.BILINEAR
    return np.asarray(part.resize(size[::-1], method))


def paste(
    values: np.ndarray, frame: Frame, factor: int, rows: range, columns: int
) -> np.ndarray:
    """The opposite of `cut`, smoothly: some rows of a picture, float32.

    The picture is `factor` times larger than the one that the frame is of. It has
    `values` in its frame and 0 elsewhere. All rows of a photograph at once would need
    gigabytes.
    """
    top, left, height, width = (factor * side for side in frame)
    first = max(rows.start, top)
    last = min(rows.stop, top + height)
    if first >= last:
        return np.zeros((len(rows), columns), np.float32)

    lines, across = values.shape
    box = (0, (first - top) * lines / height, across, (last - top) * lines / height)
    picture = Image.fromarray(values.astype(np.float32))
    picture = picture.resize((width, last - first), Image.Resampling.BICUBIC, box)
    place = (-left, rows.start - first, columns - left, rows.stop - first)
    return np.asarray(picture.crop(place))


def paste_mask(
    mask: np.ndarray, frame: Frame, factor: int, shape: tuple[int, int]
) -> np.ndarray:
    """As `paste`, for a mask and all rows, without smoothing: bool (rows, columns)."""
    top, left, height, width = (factor * side for side in frame)
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
    height, width = (last - first).tolist()
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
