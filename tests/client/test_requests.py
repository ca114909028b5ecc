"""What can't be an image is refused at one border, item by item, whatever a decoder raises of it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from digits_client import InvalidImage, Prediction, _requests
from digits_client.testing import FakeAsyncDigitClient, FakeDigitClient


def png():
    file = io.BytesIO()
    Image.effect_noise((100, 100), 50).save(file, "PNG")
    return file.getvalue()


def damaged(name, data):
    """Return a PNG with a chunk of that name and contents before its pixels, with a right check sum."""
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png()[:33] + chunk + png()[33:]


def cut(kind):
    """Return a picture, opened but not read yet, whose file ends too early."""
    file = io.BytesIO()
    Image.effect_noise((100, 100), 50).save(file, kind)
    return Image.open(io.BytesIO(file.getvalue()[:-2000]))


BAD = [
    None,
    7,
    object(),
    {"image": "a.png"},
    b"",
    b"no picture",
    bytearray(b"no picture"),
    "no/such/file.png",
    "nul\0byte.png",
    "/",
    damaged(b"iCCP", b"x"),
    damaged(b"pHYs", b"x"),
    damaged(b"gAMA", b"x"),
    damaged(b"tRNS", b""),
    damaged(b"cHRM", b"123"),
    png()[:20],
    png()[:-200],
    np.zeros(3),
    [1, 2, 3],
    io.BytesIO(b"no picture"),
]


@pytest.mark.parametrize("image", [*BAD, "cut JPEG", "cut PNG"], ids=range(len(BAD) + 2))
def test_one_bad_item_never_ends_a_stream(image):
    """Whatever an item is, the next one is answered; what was wrong stands in its place, without addresses."""
    image = cut(image[4:]) if isinstance(image, str) and image.startswith("cut ") else image
    good = np.zeros(784, np.uint8)
    kinds = [type(result) for result in FakeDigitClient(7).stream([good, image, good])]
    assert kinds in ([Prediction, InvalidImage, Prediction], [Prediction] * 3)  # some chunks a decoder may ignore
    if kinds[1] is InvalidImage:
        with pytest.raises(InvalidImage) as raised:
            _requests.prepare(image)
        assert " at 0x" not in str(raised.value)


@pytest.mark.parametrize("fault", [ValueError, OSError, SyntaxError, struct.error, ZeroDivisionError, MemoryError])
def test_whatever_a_decoder_raises_is_an_invalid_image(monkeypatch, fault):
    """The decoder's own error is the cause; the name of the file is said once."""

    def prepare(_):
        raise fault("oh")

    monkeypatch.setattr(Image, "open", prepare)
    with pytest.raises(InvalidImage) as raised:
        _requests.prepare("a.png")
    assert str(raised.value) == "a.png: can't be read as a picture: oh"
    assert isinstance(raised.value.__cause__, fault)


def test_a_missing_file_is_named_once():
    """The operating system's reason follows the name, without the name again."""
    with pytest.raises(InvalidImage) as raised:
        _requests.prepare("no/such.png")
    assert str(raised.value) == "no/such.png: can't be read as a picture: No such file or directory"


@pytest.mark.parametrize("one", ["a.png", b"bytes", bytearray(b"bytes"), Image.new("L", (9, 9)), None, 7])
async def test_what_is_not_many_images_is_refused(one):
    """A path is not its letters, a picture not its bytes; the error says what to do."""
    client, asynchronous = FakeDigitClient(7), FakeAsyncDigitClient(7)
    for call in (client.classify_many, lambda images: next(client.stream(images))):
        with pytest.raises(
            InvalidImage, match=r"^images: (None|an object of type \w+)(, which is one image|; allowed)"
        ):
            call(one)
    with pytest.raises(InvalidImage, match=r"^images: "):
        await asynchronous.classify_many(one)
    with pytest.raises(InvalidImage, match=r"^images: "):
        await anext(asynchronous.stream(one))


def test_the_bad_one_of_many_is_named_by_its_place():
    """`classify_many` says which of the images it was."""
    with pytest.raises(InvalidImage, match=r"images\[2\]: array: shape \(3,\)"):
        FakeDigitClient(7).classify_many([np.zeros(784), np.zeros(784), np.zeros(3)])
