"""Which part of a picture the model sees, and how that part is cut out and put back."""

import numpy as np
from PIL import Image

Frame = tuple[int, int, int, int]  # a part of a picture: top, left, height, width


def find_frame(
    grey: np.ndarray, hole: np.ndarray, size: tuple[int, int], crop: bool, notes: list
) -> Frame:
    """What the model sees, in its proportions: all of the picture, or a part.

    The part is the one around ink and hole. MNIST's digits fill 20 of 28 pixels and
    have their center of mass in the middle. The model knows no digit that is much
    smaller or far from the middle.
    """
    shape, size = np.array(grey.shape), np.array(size)
    whole_scale = (shape / size).max()  # pixels of the picture for one of the model's

    def frame(center: np.ndarray, scale: float) -> Frame:
        sides = np.rint(scale * size).astype(int)
        corner = np.rint(center - sides / 2).astype(int)
        return (*corner.tolist(), *sides.tolist())

    whole = frame(shape / 2, whole_scale)
    used = (grey > 0.3) | hole
    if not crop or not used.any():
        return whole

    first, last = np.array(_extent(used)).T
    scale = ((last - first) / size).max() * 28 / 20
    smaller = scale <= 0.7 * whole_scale and scale * size[0] >= 12
    scale = scale if smaller else whole_scale

    # A hole counts as MNIST's mean grey value: of MNIST's own images with holes, this
    # finds the center best (within 1.2 pixels for 14x14 holes; the middle of ink and
    # hole: within 2.0).
    mass = np.where(hole, 0.13, grey)
    y, x = (np.arange(n) + 0.5 for n in grey.shape)
    center = np.array([mass.sum(1) @ y, mass.sum(0) @ x]) / mass.sum()

    # Ink and hole keep a margin of two of the model's pixels, as nine of ten digits of
    # MNIST do.
    middle = (first + last) / 2
    reach = scale * (size / 2 - 2)
    low, high = np.minimum(last - reach, middle), np.maximum(first + reach, middle)
    center = np.clip(center, low, high)

    off = (np.abs(center - shape / 2) > whole_scale * size / 8).any()
    if not (smaller or off):
        return whole
    part = "cropped to the part around ink and hole"
    what = part if smaller else "centered by the ink's mass"
    notes.append(f"{what} (--no-crop keeps the whole)")
    return frame(center, scale)


def _extent(used: np.ndarray) -> list[tuple[int, int]]:
    """The first row of what is used and the one after the last; columns likewise."""
    places = [np.flatnonzero(used.any(axis)) for axis in (1, 0)]
    return [(int(some[0]), int(some[-1]) + 1) for some in places]


def around(missing: np.ndarray) -> np.ndarray:
    """The rectangle around a hole, twice as high and wide: bool (rows, columns)."""
    near = np.zeros(missing.shape, bool)
    if missing.any():
        parts = []
        for first, last in _extent(missing):
            margin = (last - first) // 2 + 2
            parts.append(slice(max(0, first - margin), last + margin))
        near[tuple(parts)] = True
    return near


def cut(values: np.ndarray, frame: Frame) -> np.ndarray:
    """The part `frame` of a picture, float32; outside of the picture it is 0."""
    top, left, height, width = frame
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.crop((left, top, left + width, top + height)))


def paste(values: np.ndarray, frame: Frame, rows: range, columns: int) -> np.ndarray:
    """The opposite of `cut`, smoothly: some rows of a picture, float32.

    The picture has `values` in its frame and 0 elsewhere. All rows of a photograph at
    once would need gigabytes.
    """
    top, left, height, width = frame
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


def paste_mask(mask: np.ndarray, frame: Frame, shape: tuple[int, int]) -> np.ndarray:
    """The opposite of `cut` for a mask, without smoothing: bool (rows, columns)."""
    padded = np.pad(mask, 1)  # what lies outside of the frame is not missing
    places = []
    for n, start, length, count in zip(shape, frame[:2], frame[2:], mask.shape):
        nearest = np.floor((np.arange(n) + 0.5 - start) * count / length)
        places.append(nearest.clip(-1, count).astype(int) + 1)
    return padded[np.ix_(*places)]


def shares(mask: np.ndarray, factor: int) -> np.ndarray:
    """How much of each block of factor x factor pixels is missing, in [0, 1].

    `factor` is at most 255: the sums are of bytes, since others need far more memory.
    """
    starts = [np.arange(0, n, factor) for n in mask.shape]
    sums = np.add.reduceat(mask.view(np.uint8), starts[0], axis=0, dtype=np.uint8)
    sums = np.add.reduceat(sums, starts[1], axis=1, dtype=np.float32)
    sides = [np.minimum(factor, n - start) for n, start in zip(mask.shape, starts)]
    return sums / np.outer(*sides).astype(np.float32)


def two_figures(grey: np.ndarray, missing: np.ndarray) -> bool:
    """Whether two figures stand side by side.

    A hole belongs to the ink that it touches; if it touches both, ink and hole must be
    much wider than high. Of MNIST's own digits with holes, 1 in 2,000 is taken for two.
    """
    ink = (grey > 0.3) & ~missing
    if not ink.any():
        return False
    (top, bottom), (left, right) = _extent(ink | missing)
    wide = (right - left) / (bottom - top)
    joined = wide > 1 and _side_by_side(ink | missing, ink)
    return joined or (wide > 1.45 and _side_by_side(ink, ink))


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
