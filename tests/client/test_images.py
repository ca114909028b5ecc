"""Pictures of all formats and modes, to images as MNIST has them; what can't be read is said."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from digits_client import InvalidImage, prepare


def strokes(size=(200, 260), paper="white", ink="black", box=(60, 40, 90, 220)):
    """Return a picture of a bar, off the centre."""
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).rectangle(box, fill=ink)
    return image


def square(row):
    return row.reshape(28, 28).astype(float)


def centre_of_mass(image):
    y, x = np.indices(image.shape)
    return (y * image).sum() / image.sum(), (x * image).sum() / image.sum()


def test_all_kinds_of_picture_are_the_same(tmp_path):
    """A path, a string, bytes and a PIL image of one picture give one row."""
    picture = strokes()
    picture.save(tmp_path / "bar.png")
    data = (tmp_path / "bar.png").read_bytes()
    rows = [prepare(image) for image in (tmp_path / "bar.png", str(tmp_path / "bar.png"), data, picture)]
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])


@pytest.mark.parametrize(
    ("paper", "ink"), [("white", "black"), ("black", "white"), ("#ddd", "#224"), ("navy", "yellow")]
)
def test_ink_ends_up_bright_on_dark(paper, ink):
    """Whatever the colours, the paper becomes 0 and the ink 255."""
    image = square(prepare(strokes(paper=paper, ink=ink)))
    assert image[0, 0] == 0
    assert image.max() > 250


def test_ink_is_scaled_into_the_box_and_centred():
    """The ink fits in 20 x 20 with its proportions kept, its centre of mass in the middle, wherever it was drawn."""
    image = square(prepare(strokes()))
    rows, columns = np.flatnonzero(image.max(axis=1) > 50), np.flatnonzero(image.max(axis=0) > 50)
    assert len(rows) == 20
    assert len(columns) == pytest.approx(20 * 31 / 181, abs=1)
    assert centre_of_mass(image) == pytest.approx((13.5, 13.5), abs=0.6)


def test_lopsided_ink_is_centred_by_mass_not_by_box():
    """A heavy foot pulls the centre: it is the mass that is put in the middle."""
    picture = strokes(box=(60, 40, 75, 220))
    ImageDraw.Draw(picture).rectangle((60, 190, 160, 220), fill="black")
    assert centre_of_mass(square(prepare(picture))) == pytest.approx((13.5, 13.5), abs=0.6)


def test_transparency_is_paper():
    """A drawing on a transparent ground is black on white."""
    picture = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((40, 20, 55, 80), fill=(0, 0, 0, 255))
    image = square(prepare(picture))
    assert image[0, 0] == 0
    assert image[14, 14] > 250


def test_photos_turned_by_their_camera_are_turned_back():
    """The orientation in a photo's EXIF data is followed."""
    upright = strokes()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view"
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    np.testing.assert_allclose(square(prepare(file.getvalue())), square(prepare(upright)), atol=2)


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (2100, 1)])
def test_a_line_of_pixels_is_a_picture(size):
    """However narrow a picture is, nothing of it is rounded away: empty, it is blank."""
    assert not prepare(Image.new("L", size, 255)).any()


def test_empty_paper_is_blank():
    """A picture without ink gives an image without ink."""
    assert prepare(Image.new("L", (100, 100), 255)).max() == 0


def photograph(mode="L"):
    """Return a digit-like hook, dark on paper, in a mode of Pillow's."""
    image = Image.new("L", (120, 160), 230)
    ImageDraw.Draw(image).line([(40, 30), (85, 30), (55, 130)], fill=30, width=10)
    return image.convert(mode)


HOOK = square(prepare(photograph()))


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "F"])
def test_every_mode_shows_the_same(mode):
    """Palettes, alpha, inks and integers are read alike."""
    assert np.abs(square(prepare(photograph(mode))) - HOOK).mean() < 3


@pytest.mark.parametrize("factor", [257, 16, 1])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_grey_is_not_cut(dtype, factor):
    """16 and 32 bits of grey use whatever range they like; none is cut at 255."""
    deep = Image.fromarray(np.asarray(photograph()).astype(dtype) * dtype(factor))
    np.testing.assert_allclose(square(prepare(deep)), HOOK, atol=8)


@pytest.mark.parametrize("colour", [0, 255])
def test_ink_on_a_transparent_ground_is_read_in_any_colour(colour):
    """What is drawn is ink, white as well as black."""
    alpha = ImageOps.invert(photograph()).point(lambda value: 255 * (value > 128))
    picture = Image.merge("LA", (Image.new("L", alpha.size, colour), alpha))
    np.testing.assert_allclose(square(prepare(picture)), HOOK, atol=60)


def test_orientation_is_followed_where_there_is_alpha():
    """EXIF's orientation survives the conversion of a picture with alpha."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    photograph("RGBA").transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    np.testing.assert_allclose(square(prepare(file.getvalue())), HOOK, atol=2)


def test_a_small_picture_is_prepared_like_any_other():
    """A 28 x 28 picture whose ink lies in a corner is centred; only arrays are taken as they are."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[2:14, 3:6] = 255
    image = square(prepare(Image.fromarray(pixels)))
    assert centre_of_mass(image) == pytest.approx((13.5, 13.5), abs=0.6)
    assert np.flatnonzero(image.max(axis=1) > 50).size == 20


@pytest.mark.parametrize(
    ("boxes", "complaint"),
    [
        ([(20, 40, 30, 100), (80, 40, 90, 100)], r"shows 2 digits, not one; `read`"),
        ([(50, 70, 53, 74)], "is 4 x 5 pixels; a digit needs 7"),
        ([(20, 70, 100, 76)], "wider than a digit"),
    ],
)
def test_what_is_not_one_digit_is_refused_in_words(boxes, complaint):
    """Several digits, a few pixels or a dash never become a confident guess."""
    picture = Image.new("L", (140, 140), 255)
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(box, fill=0)
    with pytest.raises(InvalidImage, match=complaint):
        prepare(picture)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_files_are_invalid_images(kind):
    """Cut or overwritten anywhere, a file is read or refused as an image: nothing else is raised."""
    file = io.BytesIO()
    photograph().save(file, kind)
    whole = file.getvalue()
    generator = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        for at in generator.integers(0, len(data), 5):
            data[at] = generator.integers(256)
        with contextlib.suppress(InvalidImage):
            prepare(bytes(data[: generator.integers(1, len(data) + 1)]))


def test_a_cut_jpeg_that_was_opened_is_an_invalid_image():
    """A PIL image that is decoded only when used fails as other pictures do."""
    file = io.BytesIO()
    photograph().save(file, "JPEG")
    with pytest.raises(InvalidImage, match="PIL image: can't be read as a picture: "):
        prepare(Image.open(io.BytesIO(file.getvalue()[:700])))
