"""What the notebooks' sliders show."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from flowlib.images.glow import load_glow
from flowlib.inpainting.inpainter import FillSettings, Inpainter
from flowlib.plots.inpainting import MASK_COLOR, show_fill, show_mask
from flowlib.plots.show import show_line, show_temperature


@pytest.fixture
def glow(tiny_glow_file):
    return load_glow(tiny_glow_file)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def test_a_square_is_moved_and_filled(glow, digits, capsys):
    settings = FillSettings(map_steps=2, fills=5)
    inpainter = Inpainter(glow, digits.train, settings=settings)
    place = {"image": 3, "side": 2, "top": 7, "left": 0}
    (picture,) = show_mask(inpainter, digits.test[:9], **place).axes[0].get_images()
    color = np.asarray(MASK_COLOR.flatten(), np.float32)
    orange = (np.asarray(picture.get_array()) == color).all(-1)
    assert np.argwhere(orange).tolist() == [[7, 0], [7, 1]]  # cut off at the edge

    figure = show_fill(inpainter, digits.test[:9], **place)
    assert figure.axes[0].get_title() == "image 3"
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"truth", "masked", "MAP", "mean", "fill 5", "uncertainty"} <= texts
    assert "100%" in capsys.readouterr().err


def test_sliders_walk_between_images_and_change_the_temperature(glow, digits):
    images = digits.test[:9]
    assert png(show_temperature(glow)) == png(show_temperature(glow, 1.0))
    assert png(show_temperature(glow)) != png(show_temperature(glow, 0.3))
    start = png(show_line(glow, images, place=0.0))
    assert start != png(show_line(glow, images, place=1.0))
    # At place 0 only the first image counts.
    assert start == png(show_line(glow, images, last=7, place=0.0))
    assert start != png(show_line(glow, images, first=7, place=0.0))
