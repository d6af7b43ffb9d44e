"""Which part of a picture the model sees, and how that part is cut out and put back."""

import numpy as np
from PIL import Image

Frame = tuple[int, int, int, int]  # a part of a picture: top, left, height, width


def find_frame(
    grey: np.ndarray, missing: np.ndarray | None, size: tuple[int, int], crop: bool, notes: list
) -> Frame:
    """What the model sees, in its proportions: the whole picture, or the part around ink and hole.

    MNIST's digits fill 20 of 28 pixels and have their center of mass in the middle; a digit that
    is much smaller or far from the middle is nothing that the model knows.
    """
    shape, size = np.array(grey.shape), np.array(size)
    whole_scale = (shape / size).max()  # pixels of the picture for one of the model's

    def around(center: np.ndarray, scale: float) -> Frame:
        sides = np.rint(scale * size).astype(int)
        return tuple([*np.rint(center - sides / 2).astype(int).tolist(), *sides.tolist()])

    whole = around(shape / 2, whole_scale)
    used = grey > 0.3 if missing is None else (grey > 0.3) | missing
    if not crop or not used.any():
        return whole
    first, last = np.array([np.flatnonzero(used.any(axis))[[0, -1]] for axis in (1, 0)]).T
    scale = ((last + 1 - first) / size).max() * 28 / 20
    smaller = scale <= 0.7 * whole_scale and scale * size[0] >= 12
    scale = scale if smaller else whole_scale

    # A hole counts as MNIST's mean grey value: of MNIST's own images with holes, this finds the
    # center best (within 1.2 pixels for 14x14 holes; the middle of ink and hole: within 2.0).
    mass = grey if missing is None else np.where(missing, 0.13, grey)
    y, x = (np.arange(n) + 0.5 for n in grey.shape)
    center = np.array([mass.sum(1) @ y, mass.sum(0) @ x]) / mass.sum()
    # Ink and hole keep a margin of two of the model's pixels, as nine of ten digits of MNIST do.
    middle, reach = (first + last + 1) / 2, scale * (size / 2 - 2)
    low, high = np.minimum(last + 1 - reach, middle), np.maximum(first + reach, middle)
    center = np.clip(center, low, high)
    off = (np.abs(center - shape / 2) > whole_scale * size / 8).any()
    if not (smaller or off):
        return whole
    what = "cropped to the part around ink and hole" if smaller else "centered by the ink's mass"
    notes.append(f"{what} (--no-crop keeps the whole)")
    return around(center, scale)


def _place(frame: Frame, shape: tuple[int, int]) -> tuple[int, tuple[slice, slice]]:
    """A margin around a picture of this shape, so that the frame fits in, and its place there."""
    top, left, height, width = frame
    margin = max(height, width, *shape)
    rows, columns = top + margin, left + margin
    return margin, (slice(rows, rows + height), slice(columns, columns + width))


def cut(values: np.ndarray, frame: Frame) -> np.ndarray:
    """The part `frame` of a picture; what lies outside of the picture is 0."""
    margin, place = _place(frame, values.shape)
    return np.pad(values, margin)[place]


def paste(values: np.ndarray, frame: Frame, shape: tuple[int, int], method: int) -> np.ndarray:
    """The opposite of `cut`: a picture of this shape, `values` in its frame, 0 elsewhere."""
    margin, place = _place(frame, shape)
    padded = np.zeros((shape[0] + 2 * margin, shape[1] + 2 * margin), np.float32)
    resized = Image.fromarray(values.astype(np.float32)).resize((frame[3], frame[2]), method)
    padded[place] = resized
    return padded[margin:-margin, margin:-margin]
