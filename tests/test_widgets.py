"""The notebooks' widgets, as a person uses them, but without a browser."""

import io

import pytest
from PIL import Image

from flowlib.images.glow import load_glow
from flowlib.inpainting.inpainter import FillSettings, Inpainter
from flowlib.plots.widgets import explore_holes, explore_line, explore_temperature


@pytest.fixture
def glow(tiny_glow_file):
    return load_glow(tiny_glow_file)


def widgets_in(box) -> list:
    """All widgets inside a box, in the order in which they are shown."""
    found = []
    for child in box.children:
        found += widgets_in(child) if hasattr(child, "children") else [child]
    return found


def size_of(picture) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture.value)) as image:
        return image.size


def test_a_hole_is_moved_and_filled(glow, digits):
    settings = FillSettings(map_steps=2, chains=5, moves=2)
    box = explore_holes(
        Inpainter(glow, digits.train, settings=settings), digits.test[:9]
    )
    image, side, top, left, button, bar, picture = widgets_in(box)
    for slider, value in ((image, 3), (side, 2), (top, 7), (left, 0)):
        before = picture.value
        slider.value = value
        assert picture.value != before
    before = size_of(picture)
    button.click()
    assert bar.value == bar.max == settings.work()
    assert not button.disabled
    assert size_of(picture)[0] > 3 * before[0]  # all fills side by side


def test_sliders_walk_between_images_and_change_the_temperature(glow, digits):
    first, second, place, picture = widgets_in(explore_line(glow, digits.test[:9]))
    *_, slider, samples = widgets_in(explore_temperature(glow))
    for control, value, shown in (
        (place, 0.0, picture),
        (place, 1.0, picture),
        (second, 5, picture),
        (slider, 0.3, samples),
    ):
        before = shown.value
        control.value = value
        assert shown.value != before
    place.value, unchanged = 0.0, None
    unchanged = picture.value
    second.value = 7  # at place 0 only the first image counts
    assert picture.value == unchanged
