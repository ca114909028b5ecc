"""Anything that shows a digit, to the numbers that the service takes."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from digits_client import InvalidImage, _images


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


@pytest.mark.parametrize("shape", [(784,), (28, 28)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_are_taken_as_they_are(shape, dtype):
    """An array of either shape keeps its values; floats become float32."""
    array = (np.arange(784) % 2).reshape(shape).astype(dtype)
    row = _images.prepare(array)
    assert row.shape == (1, 784)
    assert row.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(row.ravel(), array.ravel())


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros(783), r"shape \(783,\); allowed is \(784,\) or \(28, 28\)"),
        (np.zeros((28, 28, 3), np.uint8), r"shape \(28, 28, 3\)"),
        (np.zeros(784, np.int64), "dtype int64; allowed is uint8 in 0 to 255, or floats in 0 to 1"),
        (np.full(784, 1.5), "values from 1.5 to 1.5; allowed is 0 to 1"),
        (np.array([np.nan] * 784), "values from nan to nan; allowed is 0 to 1"),
        (7, "a int; allowed are a path, bytes, a PIL image or a numpy array"),
        (b"no picture", "10 bytes: can't be read as an image"),
        ("no/such/file.png", "no/such/file.png: can't be read as an image"),
    ],
)
def test_what_is_no_image_is_named(image, complaint):
    """The error says what was given and what is allowed."""
    with pytest.raises(InvalidImage, match=complaint):
        _images.prepare(image)


def test_all_kinds_of_picture_are_the_same(tmp_path):
    """A path, a string, bytes and a PIL image of one picture give one row."""
    picture = strokes()
    picture.save(tmp_path / "bar.png")
    data = (tmp_path / "bar.png").read_bytes()
    rows = [_images.prepare(image) for image in (tmp_path / "bar.png", str(tmp_path / "bar.png"), data, picture)]
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])


@pytest.mark.parametrize(
    ("paper", "ink"), [("white", "black"), ("black", "white"), ("#ddd", "#224"), ("navy", "yellow")]
)
def test_ink_ends_up_bright_on_dark(paper, ink):
    """Whatever the colours, the paper becomes 0 and the ink 255."""
    image = square(_images.prepare(strokes(paper=paper, ink=ink)))
    assert image[0, 0] == 0
    assert image.max() > 250


def test_ink_is_scaled_into_the_box_and_centred():
    """The ink fits in 20 x 20 with its proportions kept, its centre of mass in the middle, wherever it was drawn."""
    image = square(_images.prepare(strokes()))
    rows, columns = np.flatnonzero(image.max(axis=1) > 50), np.flatnonzero(image.max(axis=0) > 50)
    assert len(rows) == 20
    assert len(columns) == pytest.approx(20 * 31 / 181, abs=1)
    assert centre_of_mass(image) == pytest.approx((13.5, 13.5), abs=0.6)


def test_lopsided_ink_is_centred_by_mass_not_by_box():
    """A heavy foot pulls the centre: it is the mass that is put in the middle."""
    picture = strokes(box=(60, 40, 75, 220))
    ImageDraw.Draw(picture).rectangle((60, 190, 160, 220), fill="black")
    assert centre_of_mass(square(_images.prepare(picture))) == pytest.approx((13.5, 13.5), abs=0.6)


def test_prepared_images_pass_unchanged():
    """A 28 x 28 picture, as MNIST's own, keeps its pixels."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 10:14] = np.linspace(20, 255, 80).reshape(20, 4)
    np.testing.assert_array_equal(square(_images.prepare(Image.fromarray(pixels))), pixels)


def test_transparency_is_paper():
    """A drawing on a transparent ground is black on white."""
    picture = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((40, 20, 55, 80), fill=(0, 0, 0, 255))
    image = square(_images.prepare(picture))
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
    np.testing.assert_allclose(square(_images.prepare(file.getvalue())), square(_images.prepare(upright)), atol=2)


def test_empty_paper_is_blank():
    """A picture without ink gives an image without ink."""
    assert _images.prepare(Image.new("L", (100, 100), 255)).max() == 0


@pytest.mark.parametrize("shape", [(5, 784), (5, 28, 28)])
def test_many_in_one_array(shape):
    """One array of many images becomes rows."""
    assert _images.rows(np.zeros(shape, np.uint8)).shape == (5, 784)


def test_many_of_all_kinds():
    """Bytes and floats mixed become floats; all bytes stay bytes."""
    pixels = np.full(784, 255, np.uint8)
    mixed = _images.rows([pixels, np.ones((28, 28)), strokes()])
    assert mixed.dtype == np.float32
    assert mixed[:2].min() == pytest.approx(1)
    assert _images.rows([pixels, strokes()]).dtype == np.uint8


@pytest.mark.parametrize("nothing", [[], np.empty((0, 784), np.uint8)])
def test_no_images_is_an_error(nothing):
    """An empty request is refused before it is sent."""
    with pytest.raises(InvalidImage, match="there are none"):
        _images.rows(nothing)
