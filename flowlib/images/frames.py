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
    rows, columns = grey.shape
    whole_scale = max(rows / size[0], columns / size[1])  # pixels of the picture for one of ours

    def around(y: float, x: float, scale: float) -> Frame:
        height, width = round(scale * size[0]), round(scale * size[1])
        return round(y - height / 2), round(x - width / 2), height, width

    whole = around(rows / 2, columns / 2, whole_scale)
    used = grey > 0.3 if missing is None else (grey > 0.3) | missing
    if not crop or not used.any():
        return whole
    (top, bottom), (left, right) = (np.flatnonzero(used.any(a))[[0, -1]].tolist() for a in (1, 0))
    scale = max((bottom + 1 - top) / size[0], (right + 1 - left) / size[1]) * 28 / 20
    smaller = scale <= 0.7 * whole_scale and scale * size[0] >= 12
    scale = scale if smaller else whole_scale

    # A hole counts as MNIST's mean grey value: of MNIST's own images with holes, this finds the
    # center best (within 1.1 pixels for 14x14 holes; the middle of ink and hole: within 2.0).
    mass = grey if missing is None else np.where(missing, 0.13, grey)
    y = mass.sum(1) @ (np.arange(rows) + 0.5) / mass.sum()
    x = mass.sum(0) @ (np.arange(columns) + 0.5) / mass.sum()
    off = max(abs(y - rows / 2), abs(x - columns / 2)) > whole_scale * max(size) / 8
    if not (smaller or off):
        return whole
    first_row, first_column, height, width = around(y, x, scale)
    first_row = min(max(first_row, bottom + 1 - height), top)  # ink and hole stay inside
    first_column = min(max(first_column, right + 1 - width), left)
    what = "cropped to the part around ink and hole" if smaller else "centered by the ink's mass"
    notes.append(f"{what} (--no-crop keeps the whole)")
    return first_row, first_column, height, width


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
