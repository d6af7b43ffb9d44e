import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from flowlib.files import ROOT, UserError
from flowlib.images.frames import two_figures
from flowlib.images.user_images import (
    TWO_FIGURES,
    find_mask,
    find_pictures,
    read_picture,
    save_picture,
)

SHAPE, LEVELS = (1, 28, 28), 256


@pytest.fixture
def stroke():
    """A white stroke on black, 28 x 28."""
    values = np.zeros((28, 28), dtype=np.uint8)
    values[4:24, 12:16] = 255
    return values


@pytest.fixture
def files(tmp_path):
    def write(name: str, values: np.ndarray, mode: str | None = None):
        Image.fromarray(values).convert(mode).save(
            tmp_path / name
        ) if mode else Image.fromarray(values).save(tmp_path / name)
        return tmp_path / name

    return write


def hole(size=28):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[size // 4 : size // 2] = 255
    return mask


def test_a_picture_of_the_models_size_comes_through_unchanged_but_for_its_hole(
    stroke, files
):
    picture = read_picture(
        files("a.png", stroke), files("m.png", hole()), SHAPE, LEVELS
    )
    missing = torch.from_numpy(hole() > 0)[None]
    assert torch.equal(picture.mask, missing)
    assert torch.equal(
        picture.image[~missing], torch.from_numpy(stroke)[None][~missing]
    )
    assert picture.notes == []


def test_dark_ink_is_inverted_and_said_so(stroke, files):
    picture = read_picture(
        files("a.png", 255 - stroke), files("m.png", hole()), SHAPE, LEVELS
    )
    assert picture.image[0, 20, 13] == 255
    assert picture.image[0, 0, 0] == 0
    assert any("inverted" in note for note in picture.notes)
    kept = read_picture(
        files("a.png", 255 - stroke), files("m.png", hole()), SHAPE, LEVELS, ink="light"
    )
    assert kept.image[0, 0, 0] == 255


def test_an_inverted_mask_is_seen_and_polarity_decides(stroke, files):
    inverted = read_picture(
        files("a.png", stroke), files("m.png", 255 - hole()), SHAPE, LEVELS
    )
    assert torch.equal(inverted.mask[0], torch.from_numpy(hole() > 0))
    assert any("took black as missing" in note for note in inverted.notes)
    as_told = read_picture(
        files("a.png", stroke),
        files("m.png", 255 - hole()),
        SHAPE,
        LEVELS,
        polarity="white",
    )
    assert torch.equal(as_told.mask[0], torch.from_numpy(hole() == 0))


@pytest.mark.parametrize(
    ("mode", "note"),
    [
        ("RGB", "color"),
        ("RGBA", "color"),
        ("P", "color"),
        ("L", None),
        ("I;16", "16-bit"),
    ],
)
def test_other_kinds_of_picture_give_the_same_grey(mode, note, stroke, files):
    file = (
        files("a.png", stroke.astype(np.uint16) * 257)
        if mode == "I;16"
        else files("a.png", stroke, mode)
    )
    picture = read_picture(file, files("m.png", hole()), SHAPE, LEVELS)
    expected = torch.where(torch.from_numpy(hole() > 0), 0, torch.from_numpy(stroke))
    assert (picture.image[0].int() - expected.int()).abs().max() <= 1
    assert note is None or any(note in said for said in picture.notes)


def test_transparency_is_laid_over_white(files):
    values = np.zeros((28, 28, 4), dtype=np.uint8)
    values[4:24, 12:16] = (0, 0, 0, 255)  # black ink, all else transparent
    picture = read_picture(
        files("a.png", values), files("m.png", hole()), SHAPE, LEVELS
    )
    assert picture.image[0, 20, 13] == 255
    assert picture.image[0, 0, 0] == 0


def test_a_large_picture_is_resized_with_its_mask_and_the_hole_does_not_bleed(
    files, stroke
):
    large, mask = stroke.repeat(4, 0).repeat(4, 1), hole(112)
    picture = read_picture(files("a.png", large), files("m.png", mask), SHAPE, LEVELS)
    assert picture.image.shape == picture.mask.shape == SHAPE
    tampered = np.where(mask > 0, 200, large).astype(np.uint8)
    again = read_picture(files("b.png", tampered), files("m.png", mask), SHAPE, LEVELS)
    assert torch.equal(picture.image, again.image)


@pytest.mark.parametrize("ink", [(255, 255, 255), (0, 200, 0), (0, 0, 0)])
@pytest.mark.parametrize("punched", [False, True])
def test_in_a_mask_with_transparency_the_rarer_part_is_missing(
    ink, punched, stroke, files
):
    values = np.zeros((28, 28, 4), dtype=np.uint8)
    opaque = (hole() > 0) != punched
    values[opaque] = (*ink, 255)
    picture = read_picture(
        files("a.png", stroke), files("m.png", values), SHAPE, LEVELS
    )
    assert torch.equal(picture.mask[0], torch.from_numpy(hole() > 0))
    assert "the mask's transparency says what is missing" in picture.notes


@pytest.mark.parametrize("ink", [(255, 0, 0), (0, 0, 255), (1, 1, 1)])
def test_in_any_other_mask_the_brightest_color_is_missing(ink, stroke, files):
    values = np.zeros((28, 28, 3), dtype=np.uint8)
    values[hole() > 0] = ink
    picture = read_picture(
        files("a.png", stroke), files("m.png", values), SHAPE, LEVELS
    )
    assert torch.equal(picture.mask[0], torch.from_numpy(hole() > 0))


def test_a_photograph_is_taken_as_a_viewer_shows_it(stroke, tmp_path, files):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn to the right
    turned = np.rot90(stroke.repeat(4, 0).repeat(4, 1)).copy()
    Image.fromarray(turned).save(tmp_path / "phone.png", exif=exif)
    photo = read_picture(
        tmp_path / "phone.png", files("m.png", hole(112)), SHAPE, LEVELS
    )
    large = files("a.png", stroke.repeat(4, 0).repeat(4, 1))
    upright = read_picture(large, files("m.png", hole(112)), SHAPE, LEVELS)
    assert torch.equal(photo.image, upright.image)


def test_a_grey_mask_is_cut_at_half_and_said_so(stroke, files):
    soft = np.where(hole() > 0, 180, 60).astype(np.uint8)
    picture = read_picture(files("a.png", stroke), files("m.png", soft), SHAPE, LEVELS)
    assert torch.equal(picture.mask[0], torch.from_numpy(hole() > 0))
    assert any("cut at half" in note for note in picture.notes)


def test_what_cannot_be_used_is_said(stroke, files, tmp_path):
    good, mask = files("a.png", stroke), files("m.png", hole())
    (tmp_path / "text.png").write_text("no picture")
    for image, hidden, says in (
        (tmp_path / "none.png", mask, "no file"),
        (tmp_path / "text.png", mask, "cannot be read"),
        (good, tmp_path / "text.png", "cannot be read"),
        (good, files("small.png", hole(14)), "one size"),
        (good, files("nothing.png", hole() * 0), "marks no pixel"),
    ):
        with pytest.raises(UserError, match=says):
            read_picture(image, hidden, SHAPE, LEVELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture in the folder"):
        find_pictures([tmp_path / "empty"])


def test_what_a_scratch_runs_through_is_missing_and_edges_do_not_grow(files, stroke):
    large, mask = (
        stroke.repeat(40, 0).repeat(40, 1),
        np.zeros((1120, 1120), dtype=np.uint8),
    )
    mask[:, 500:506] = 255  # a seventh of a pixel of the model
    picture = read_picture(files("a.png", large), files("m.png", mask), SHAPE, LEVELS)
    assert picture.mask[0, :, 12].all()
    assert picture.mask.sum() == 28
    mask[400:803, 600:803] = 255  # reaches 3 of 40 into the next pixels: not missing
    picture = read_picture(files("a.png", large), files("m.png", mask), SHAPE, LEVELS)
    assert picture.mask.sum() == 28 + 10 * 5


def paper(
    stroke, ground: float, ink: float, shade: float = 0.0, noise: float = 0.0
) -> np.ndarray:
    """A photograph of a stroke on paper, ten times as large, grey levels."""
    large = stroke.repeat(10, 0).repeat(10, 1) / 255
    x = np.linspace(-1, 1, 280)
    values = ground + shade * (x + x[:, None] + x**2 / 2) + (ink - ground) * large
    values += np.random.default_rng(0).normal(0, noise, values.shape)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("ground", "ink", "shade", "noise"),
    [
        (0.7, 0.1, 0.1, 0.03),
        (0.35, 0.1, 0.03, 0.01),
        (0.2, 0.06, 0, 0),
        (0.3, 0.9, 0.05, 0.02),
    ],
)
def test_ground_becomes_0_and_ink_1_on_any_paper(
    ground, ink, shade, noise, stroke, files
):
    photo = files("a.png", paper(stroke, ground, ink, shade, noise))
    picture = read_picture(photo, files("m.png", hole(280)), SHAPE, LEVELS)
    expected = torch.where(picture.mask[0], 0, torch.from_numpy(stroke)).int()
    assert (picture.image[0].int() - expected).abs().max() < 40
    assert picture.image[0][(expected == 0)].max() < 10
    assert any("brought to 0 and 1" in note for note in picture.notes)


def test_a_fill_is_drawn_into_the_picture_with_its_own_paper_and_ink(stroke, files):
    photo = paper(stroke, 0.7, 0.1, 0.1, 0.01)
    picture = read_picture(
        files("a.png", photo), files("m.png", hole(280)), SHAPE, LEVELS
    )
    restored = np.asarray(picture.restore(torch.from_numpy(stroke)[None] / 255))
    missing = hole(280) > 0
    assert np.array_equal(restored[~missing], photo[~missing])
    inner = missing.copy()  # the edges of the stroke are blurred
    inner[:, 100:180] = False
    difference = np.abs(restored.astype(int) - photo)
    assert difference[inner].max() < 15
    assert difference[missing].mean() < 12


def test_a_small_digit_is_cropped_and_the_fill_goes_back_to_its_place(stroke, files):
    page, mask = (
        np.full((500, 400), 255, dtype=np.uint8),
        np.zeros((500, 400), dtype=np.uint8),
    )
    page[300:360, 40:100] = 255 - stroke[:20, 4:24].repeat(3, 0).repeat(3, 1)
    mask[330:340, 60:80] = 255
    args = files("a.png", page), files("m.png", mask), SHAPE, LEVELS
    picture = read_picture(*args)
    assert any("cropped" in note for note in picture.notes)
    rows = picture.image[0].sum(1).nonzero()
    assert rows.max() - rows.min() >= 17  # MNIST's digits fill 20 of 28 pixels
    restored = np.asarray(picture.restore(torch.ones(SHAPE)))
    assert np.array_equal(restored != page, (mask > 0) & (page > 0))
    whole = read_picture(*args, crop=False)
    assert (whole.image > 0).sum() < 0.2 * (picture.image > 0).sum()


def test_a_digit_far_from_the_middle_is_centered_and_one_of_mnist_stays(stroke, files):
    missing = np.zeros((28, 28), dtype=np.uint8)
    missing[12:16, 12:16] = 255
    args = files("m.png", missing), SHAPE, LEVELS
    shifted = np.zeros_like(stroke)
    shifted[8:, 8:] = stroke[4:24, 4:24]
    stays, moves = (
        read_picture(files(f"{i}.png", x), *args)
        for i, x in enumerate((stroke, shifted))
    )
    assert stays.frame == (0, 0, 28, 28)
    assert not any("centered" in note for note in stays.notes)
    assert any("centered" in note for note in moves.notes)
    assert moves.frame[2:] == (28, 28)  # only moved: each pixel keeps its value
    ink = moves.image[0].double()
    places = torch.arange(28).double() + 0.5
    center = torch.stack([ink.sum(axis) @ places for axis in (1, 0)]) / ink.sum()
    assert (center - 14).abs().max() < 1
    restored = np.asarray(moves.restore(torch.ones(SHAPE)))
    assert np.array_equal(restored != shifted, (missing > 0) & (shifted < 255))


def test_a_model_of_other_proportions_sees_the_picture_undistorted(stroke, files):
    picture = read_picture(
        files("a.png", stroke), files("m.png", hole()), (1, 28, 56), LEVELS
    )
    sides = picture.image[0][:, :14], picture.image[0][:, 42:]
    assert not torch.cat(sides).any()
    expected = torch.where(torch.from_numpy(hole() > 0), 0, torch.from_numpy(stroke))
    assert torch.equal(picture.image[0][:, 14:42], expected)
    assert picture.mask.sum() == (hole() > 0).sum()
    restored = np.asarray(picture.restore(picture.image / 255))
    assert np.array_equal(restored > 0, expected.numpy() > 0)


def test_white_strokes_on_transparency_are_ink(files, stroke):
    values = np.full((28, 28, 4), 255, dtype=np.uint8)
    values[..., 3] = stroke
    picture = read_picture(
        files("a.png", values), files("m.png", hole()), SHAPE, LEVELS
    )
    expected = torch.where(picture.mask[0], 0, torch.from_numpy(stroke))
    assert torch.equal(picture.image[0], expected)


def test_a_mask_that_covers_everything_is_said_to(files, stroke):
    everything = np.full((28, 28), 255, dtype=np.uint8)
    picture = read_picture(
        files("a.png", stroke), files("m.png", everything), SHAPE, LEVELS
    )
    assert picture.mask.all()
    assert "nothing of the picture is known" in picture.notes[-1]


def test_hidden_files_and_other_kinds_are_no_pictures_and_masks_lie_apart(
    files, tmp_path
):
    picture = files("a.png", hole())
    for name in ("._a.png", "a.json"):
        (tmp_path / name).write_text("{}")
    assert find_pictures([tmp_path]) == [picture]
    assert find_mask(str(tmp_path), tmp_path / "elsewhere" / "a.jpg") == picture
    with pytest.raises(UserError, match="masks need a folder of their own"):
        find_mask(str(tmp_path), picture)


def test_a_folder_of_masks_gives_the_one_of_the_pictures_name(files, tmp_path):
    mask = files("a.png", hole())
    assert find_mask(str(tmp_path), tmp_path / "elsewhere" / "a.jpg") == mask
    with pytest.raises(UserError, match="must be called b.png"):
        find_mask(str(tmp_path), tmp_path / "elsewhere" / "b.png")


@pytest.mark.parametrize(
    ("bad", "says"),
    [(np.nan, "values that are not"), (np.inf, "values that"), (-1, "no value")],
)
def test_pictures_of_floats_need_finite_values_and_light(bad, says, files):
    values = np.full((28, 28), bad, dtype=np.float32)
    with pytest.raises(UserError, match=f"a.tif has {says}"):
        read_picture(files("a.tif", values), files("m.png", hole()), SHAPE, LEVELS)


def test_a_picture_too_large_for_memory_is_one_line(stroke, files, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # the picture has 784
    with pytest.raises(UserError, match="a.png has more than 0 million pixels"):
        read_picture(files("a.png", stroke), files("m.png", hole()), SHAPE, LEVELS)


def test_an_animation_is_said_to_be_one(stroke, files, tmp_path):
    frames = [Image.fromarray(stroke), Image.fromarray(255 - stroke)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / "a.gif", files("m.png", hole()), SHAPE, LEVELS)
    assert "the first of 2 frames" in picture.notes


# ---------------------------------------------------------------- the filled picture


def kind_of_picture(mode: str, stroke: np.ndarray) -> Image.Image:
    """The stroke with some noise in all of its channels."""
    channels = {"LA": (2,), "RGBA": (4,), "L": (), "I;16": ()}.get(mode, (3,))
    noise = np.random.default_rng(0).integers(0, 40, (28, 28, *channels))
    values = 0.8 * stroke.reshape(28, 28, *[1 for _ in channels]) + noise
    if mode == "I;16":
        return Image.fromarray((values * 250).astype(np.uint16))
    picture = Image.fromarray(values.astype(np.uint8))
    return picture if picture.mode == mode else picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "written"),
    [(mode, mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16")]
    + [("1", "L"), ("P", "RGB"), ("P", "RGBA"), ("CMYK", "RGB"), ("YCbCr", "RGB")],
)
def test_outside_of_the_hole_it_is_the_users_own_bit_for_bit(
    mode, written, stroke, tmp_path, files
):
    """Its colors, its transparency, its 16 bits."""
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    options = {"transparency": 3} if (mode, written) == ("P", "RGBA") else {}
    kind_of_picture(mode, stroke).save(path, **options)
    with Image.open(path) as file:
        assert file.mode == mode
        own = np.asarray(file if file.mode == written else file.convert(written))

    picture = read_picture(path, files("m.png", hole()), SHAPE, LEVELS)
    save_picture(tmp_path / "filled.png", picture.restore(torch.rand(SHAPE)))
    with Image.open(tmp_path / "filled.png") as filled:
        assert filled.mode == written
        same = (own == np.asarray(filled)).reshape(28, 28, -1).all(-1)
    assert same[hole() == 0].all()
    assert same[hole() > 0].mean() < 0.5


def fill_in(path, mask, stroke) -> np.ndarray:
    """The picture with the stroke itself as its fill."""
    picture = read_picture(path, mask, SHAPE, LEVELS)
    return np.asarray(picture.restore(torch.from_numpy(stroke)[None] / 255))


@pytest.mark.parametrize(
    ("paper", "ink"),
    [
        ((246, 240, 222), (30, 48, 140)),  # blue on cream
        ((20, 60, 30), (250, 250, 120)),  # yellow on a green board
        ((0, 0, 0, 0), (0, 0, 0, 255)),  # black strokes on nothing
        ((255, 255, 255, 0), (0, 0, 0, 255)),
        ((255, 255, 255, 0), (255, 255, 255, 255)),
        (
            (9, 200, 7, 0),
            (200, 0, 0, 255),
        ),  # what lies under full transparency is no color
        ((255, 255), (60, 255)),
    ],
)
def test_the_hole_is_filled_in_the_pictures_own_colors(paper, ink, stroke, files):
    own = np.where(stroke[..., None] > 0, ink, paper).astype(np.uint8)
    tampered = own.copy()
    tampered[hole() > 0] = 255 - own[hole() > 0]
    filled = fill_in(files("a.png", tampered), files("m.png", hole()), stroke).astype(
        int
    )
    opaque = own[..., -1:] / 255 if len(ink) in (2, 4) else 1
    difference = np.abs(filled - own)
    if len(ink) in (2, 4):
        assert difference[..., -1].max() <= 1
    assert (difference * opaque).max() <= 2


def test_the_hole_takes_its_colors_from_its_surroundings(stroke, files):
    """A card with black ink on it, and nothing around it: the hole in it is opaque."""
    page = np.zeros((112, 112, 4), np.uint8)
    page[28:84, 28:84] = 255
    page[28:84, 28:84, :3][stroke.repeat(2, 0).repeat(2, 1) > 0] = 0
    missing = np.zeros((112, 112), np.uint8)
    missing[42:56, 48:62] = 255
    picture = read_picture(files("a.png", page), files("m.png", missing), SHAPE, LEVELS)
    filled = np.asarray(picture.restore(torch.zeros(SHAPE)))
    assert (filled[missing > 0] == 255).all()


def test_floats_are_filled_in_16_bits_and_said_to_be(stroke, tmp_path, files):
    values = 3.5 * stroke.astype(np.float32) / 255
    picture = read_picture(
        files("a.tif", values), files("m.png", hole()), SHAPE, LEVELS
    )
    assert "floats: 0 ... 3.5 scaled to 16 bits, when filled too" in picture.notes
    filled = np.asarray(picture.restore(torch.from_numpy(stroke)[None] / 255))
    assert filled.dtype == np.uint16
    assert np.array_equal(filled, stroke.astype(np.uint16) * 257)


def test_a_color_profile_is_kept_where_the_colors_are(stroke, tmp_path, files):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("RGB", "CMYK"):
        original = kind_of_picture(mode, stroke)
        original.save(tmp_path / "a.tif", icc_profile=profile)
        picture = read_picture(
            tmp_path / "a.tif", files("m.png", hole()), SHAPE, LEVELS
        )
        save_picture(tmp_path / "filled.png", picture.restore(torch.zeros(SHAPE)))
        with Image.open(tmp_path / "filled.png") as filled:
            assert filled.info.get("icc_profile") == (
                profile if mode == "RGB" else None
            )


def test_a_photograph_is_read_as_the_small_picture_and_filled_in_its_own_size(
    stroke, files
):
    """2,240 x 2,240: ground, ink and frame are found in a copy of half the size."""
    grown = [values.repeat(80, 0).repeat(80, 1) for values in (255 - stroke, hole())]
    small = read_picture(
        files("a.png", 255 - stroke), files("m.png", hole()), SHAPE, LEVELS
    )
    large = read_picture(
        files("b.png", grown[0]), files("n.png", grown[1]), SHAPE, LEVELS
    )
    assert (small.factor, large.factor) == (1, 2)
    assert torch.equal(small.image, large.image)
    assert torch.equal(small.mask, large.mask)
    filled = np.asarray(large.restore(torch.zeros(SHAPE)))
    assert np.array_equal(filled, np.where(grown[1] > 0, 255, grown[0]))
    named = read_picture(files("b.png", grown[0]), small.mask, SHAPE, LEVELS)
    assert np.array_equal(named.full_mask, grown[1] > 0)


def test_a_photograph_needs_little_memory(tmp_path):
    """12 million pixels of 4 bytes, and the mask; what else there is must be small."""
    pytest.importorskip("resource")  # Windows has none
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, torch
from pathlib import Path
from PIL import Image
from flowlib.images.user_images import read_picture, save_picture
page, mask = Image.new("RGB", (4000, 3000), "white"), Image.new("L", (4000, 3000))
page.paste("navy", (1900, 700, 2200, 2300))
mask.paste(255, (1700, 1400, 2300, 1700))
page.save("a.jpg"), mask.save("m.png")
del page, mask
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = read_picture(Path("a.jpg"), Path("m.png"), (1, 28, 28), 256)
save_picture(Path("filled.png"), picture.restore(torch.zeros(1, 28, 28)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert 1024 * int(run.stdout) < 12e6 * 20


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize("hole_ends", [18, 40])
def test_two_figures_in_one_picture_are_said_to_be_two(hole_ends, stroke, files):
    """Be the hole in one of them, or between them so that it touches both."""
    both = np.zeros((28, 56), np.uint8)
    both[:, :28] = stroke
    both[:, 28:] = stroke.repeat(2, 1)[:, 14:42]
    missing = np.zeros_like(both)
    missing[10:14, 15:hole_ends] = 255
    for page in (both, 255 - both):
        picture = read_picture(
            files("a.png", page), files("m.png", missing), SHAPE, LEVELS
        )
        assert TWO_FIGURES in picture.notes


def test_one_figure_and_a_speck_are_not_two(stroke, files):
    missing = np.zeros_like(stroke)
    missing[10:14, 12:16] = 255
    one = read_picture(files("a.png", stroke), files("m.png", missing), SHAPE, LEVELS)
    speck = stroke.copy()
    speck[4:8, 24:26] = 255
    other = read_picture(files("a.png", speck), files("m.png", missing), SHAPE, LEVELS)
    assert TWO_FIGURES not in one.notes + other.notes


def test_digits_of_mnist_are_one_figure_each(mnist):
    """With a square hole in the middle, and with none."""
    for side in (14, 0):
        missing = np.zeros((28, 28), bool)
        missing[14 - side // 2 : 14 + side // 2, 14 - side // 2 : 14 + side // 2] = True
        digits = np.where(missing, 0, mnist.train[:2000, 0].numpy() / 255)
        assert np.mean([two_figures(digit, missing) for digit in digits]) < 0.002


def test_colors_of_16_bits_are_said_to_be_read_as_8(stroke, tmp_path, files):
    png = tmp_path / "a.png"
    write_deep_png(png, stroke)
    picture = read_picture(png, files("m.png", hole()), SHAPE, LEVELS)
    assert "16 bits for each color: read as 8" in picture.notes
    assert picture.original.mode == "RGB"


def write_deep_png(path, stroke):
    """A PNG with 16 bits for each color, which Pillow reads but does not write."""
    rows = stroke.astype(">u2").repeat(3, 1) * 257
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *stroke.shape[::-1], 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
