import numpy as np
import pytest
import torch
from PIL import Image

from flowlib.files import UserError
from flowlib.images.user_images import find_mask, find_pictures, read_picture

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
        Image.fromarray(values).convert(mode).save(tmp_path / name) if mode else Image.fromarray(
            values
        ).save(tmp_path / name)
        return tmp_path / name

    return write


def hole(size=28):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[size // 4 : size // 2] = 255
    return mask


def test_a_picture_of_the_models_size_comes_through_unchanged_but_for_its_hole(stroke, files):
    picture = read_picture(files("a.png", stroke), files("m.png", hole()), SHAPE, LEVELS)
    missing = torch.from_numpy(hole() > 0)[None]
    assert torch.equal(picture.mask, missing)
    assert torch.equal(picture.image[~missing], torch.from_numpy(stroke)[None][~missing])
    assert picture.notes == []


def test_dark_ink_is_inverted_and_said_so(stroke, files):
    picture = read_picture(files("a.png", 255 - stroke), files("m.png", hole()), SHAPE, LEVELS)
    assert picture.image[0, 20, 13] == 255
    assert picture.image[0, 0, 0] == 0
    assert any("inverted" in note for note in picture.notes)
    kept = read_picture(
        files("a.png", 255 - stroke), files("m.png", hole()), SHAPE, LEVELS, ink="light"
    )
    assert kept.image[0, 0, 0] == 255


def test_an_inverted_mask_is_seen_and_polarity_decides(stroke, files):
    inverted = read_picture(files("a.png", stroke), files("m.png", 255 - hole()), SHAPE, LEVELS)
    assert torch.equal(inverted.mask[0], torch.from_numpy(hole() > 0))
    assert any("took black as missing" in note for note in inverted.notes)
    as_told = read_picture(
        files("a.png", stroke), files("m.png", 255 - hole()), SHAPE, LEVELS, polarity="white"
    )
    assert torch.equal(as_told.mask[0], torch.from_numpy(hole() == 0))


@pytest.mark.parametrize(
    ("mode", "note"),
    [("RGB", "color"), ("RGBA", "color"), ("P", "color"), ("L", None), ("I;16", "16-bit")],
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
    picture = read_picture(files("a.png", values), files("m.png", hole()), SHAPE, LEVELS)
    assert picture.image[0, 20, 13] == 255
    assert picture.image[0, 0, 0] == 0


def test_a_large_picture_is_resized_with_its_mask_and_the_hole_does_not_bleed(files, stroke):
    large, mask = stroke.repeat(4, 0).repeat(4, 1), hole(112)
    picture = read_picture(files("a.png", large), files("m.png", mask), SHAPE, LEVELS)
    assert picture.image.shape == picture.mask.shape == SHAPE
    tampered = np.where(mask > 0, 200, large).astype(np.uint8)
    again = read_picture(files("b.png", tampered), files("m.png", mask), SHAPE, LEVELS)
    assert torch.equal(picture.image, again.image)


@pytest.mark.parametrize("ink", [(255, 255, 255), (0, 200, 0), (0, 0, 0)])
@pytest.mark.parametrize("punched", [False, True])
def test_in_a_mask_with_transparency_the_rarer_part_is_missing(ink, punched, stroke, files):
    values = np.zeros((28, 28, 4), dtype=np.uint8)
    opaque = (hole() > 0) != punched
    values[opaque] = (*ink, 255)
    picture = read_picture(files("a.png", stroke), files("m.png", values), SHAPE, LEVELS)
    assert torch.equal(picture.mask[0], torch.from_numpy(hole() > 0))
    assert "the mask's transparency says what is missing" in picture.notes


@pytest.mark.parametrize("ink", [(255, 0, 0), (0, 0, 255), (1, 1, 1)])
def test_in_any_other_mask_the_brightest_color_is_missing(ink, stroke, files):
    values = np.zeros((28, 28, 3), dtype=np.uint8)
    values[hole() > 0] = ink
    picture = read_picture(files("a.png", stroke), files("m.png", values), SHAPE, LEVELS)
    assert torch.equal(picture.mask[0], torch.from_numpy(hole() > 0))


def test_a_photograph_is_taken_as_a_viewer_shows_it(stroke, tmp_path, files):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn to the right
    turned = np.rot90(stroke.repeat(4, 0).repeat(4, 1)).copy()
    Image.fromarray(turned).save(tmp_path / "phone.png", exif=exif)
    photo = read_picture(tmp_path / "phone.png", files("m.png", hole(112)), SHAPE, LEVELS)
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
    large, mask = stroke.repeat(40, 0).repeat(40, 1), np.zeros((1120, 1120), dtype=np.uint8)
    mask[:, 500:506] = 255  # a seventh of a pixel of the model
    picture = read_picture(files("a.png", large), files("m.png", mask), SHAPE, LEVELS)
    assert picture.mask[0, :, 12].all()
    assert picture.mask.sum() == 28
    mask[400:803, 600:803] = 255  # reaches 3 of 40 into the next pixels: not missing
    picture = read_picture(files("a.png", large), files("m.png", mask), SHAPE, LEVELS)
    assert picture.mask.sum() == 28 + 10 * 5


def paper(stroke, ground: float, ink: float, shade: float = 0.0, noise: float = 0.0) -> np.ndarray:
    """A photograph of a stroke on paper, ten times as large, grey levels."""
    large = stroke.repeat(10, 0).repeat(10, 1) / 255
    x = np.linspace(-1, 1, 280)
    values = ground + shade * (x + x[:, None] + x**2 / 2) + (ink - ground) * large
    values += np.random.default_rng(0).normal(0, noise, values.shape)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("ground", "ink", "shade", "noise"),
    [(0.7, 0.1, 0.1, 0.03), (0.35, 0.1, 0.03, 0.01), (0.2, 0.06, 0, 0), (0.3, 0.9, 0.05, 0.02)],
)
def test_ground_becomes_0_and_ink_1_on_any_paper(ground, ink, shade, noise, stroke, files):
    photo = files("a.png", paper(stroke, ground, ink, shade, noise))
    picture = read_picture(photo, files("m.png", hole(280)), SHAPE, LEVELS)
    expected = torch.where(picture.mask[0], 0, torch.from_numpy(stroke)).int()
    assert (picture.image[0].int() - expected).abs().max() < 40
    assert picture.image[0][(expected == 0)].max() < 10
    assert any("brought to 0 and 1" in note for note in picture.notes)


def test_a_fill_is_drawn_into_the_picture_with_its_own_paper_and_ink(stroke, files):
    photo = paper(stroke, 0.7, 0.1, 0.1, 0.01)
    picture = read_picture(files("a.png", photo), files("m.png", hole(280)), SHAPE, LEVELS)
    restored = picture.restore(torch.from_numpy(stroke)[None] / 255)
    missing = hole(280) > 0
    assert np.array_equal(restored[~missing], photo[~missing])
    inner = missing.copy()  # the edges of the stroke are blurred
    inner[:, 100:180] = False
    difference = np.abs(restored.astype(int) - photo)
    assert difference[inner].max() < 15
    assert difference[missing].mean() < 12


def test_a_small_digit_is_cropped_and_the_fill_goes_back_to_its_place(stroke, files):
    page, mask = np.full((500, 400), 255, dtype=np.uint8), np.zeros((500, 400), dtype=np.uint8)
    page[300:360, 40:100] = 255 - stroke[:20, 4:24].repeat(3, 0).repeat(3, 1)
    mask[330:340, 60:80] = 255
    args = files("a.png", page), files("m.png", mask), SHAPE, LEVELS
    picture = read_picture(*args)
    assert any("cropped" in note for note in picture.notes)
    rows = picture.image[0].sum(1).nonzero()
    assert rows.max() - rows.min() >= 17  # MNIST's digits fill 20 of 28 pixels
    restored = picture.restore(torch.ones(SHAPE))
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
        read_picture(files(f"{i}.png", x), *args) for i, x in enumerate((stroke, shifted))
    )
    assert stays.frame == (0, 0, 28, 28)
    assert not any("centered" in note for note in stays.notes)
    assert any("centered" in note for note in moves.notes)
    assert moves.frame[2:] == (28, 28)  # only moved: each pixel keeps its value
    ink = moves.image[0].double()
    places = torch.arange(28).double() + 0.5
    center = torch.stack([ink.sum(axis) @ places for axis in (1, 0)]) / ink.sum()
    assert (center - 14).abs().max() < 1
    restored = moves.restore(torch.ones(SHAPE))
    assert np.array_equal(restored != shifted, (missing > 0) & (shifted < 255))


def test_a_model_of_other_proportions_sees_the_picture_undistorted(stroke, files):
    picture = read_picture(files("a.png", stroke), files("m.png", hole()), (1, 28, 56), LEVELS)
    sides = picture.image[0][:, :14], picture.image[0][:, 42:]
    assert not torch.cat(sides).any()
    expected = torch.where(torch.from_numpy(hole() > 0), 0, torch.from_numpy(stroke))
    assert torch.equal(picture.image[0][:, 14:42], expected)
    assert picture.mask.sum() == (hole() > 0).sum()
    assert np.array_equal(picture.restore(picture.image / 255) > 0, expected.numpy() > 0)


def test_white_strokes_on_transparency_are_ink(files, stroke):
    values = np.full((28, 28, 4), 255, dtype=np.uint8)
    values[..., 3] = stroke
    picture = read_picture(files("a.png", values), files("m.png", hole()), SHAPE, LEVELS)
    expected = torch.where(picture.mask[0], 0, torch.from_numpy(stroke))
    assert torch.equal(picture.image[0], expected)


def test_a_mask_that_covers_everything_is_said_to(files, stroke):
    everything = np.full((28, 28), 255, dtype=np.uint8)
    picture = read_picture(files("a.png", stroke), files("m.png", everything), SHAPE, LEVELS)
    assert picture.mask.all()
    assert "nothing of the picture is known" in picture.notes[-1]


def test_hidden_files_and_other_kinds_are_no_pictures_and_masks_lie_apart(files, tmp_path):
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


def test_pictures_of_floats_need_finite_values_and_light(files):
    for bad in (np.nan, np.inf, -1):
        values = np.full((28, 28), bad, dtype=np.float32)
        with pytest.raises(UserError, match="a.tif has values that are not finite, or none above"):
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
