"""What goes into which message of a call: decided here, done by the clients. No network, no clock, no event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from PIL import Image

from digits_client import _arrays, _codec
from digits_client._arrays import PIXELS, Rows
from digits_client._codec import Columns
from digits_client._errors import DigitsError, InvalidImage

Picture = str | Path | bytes | bytearray | memoryview | Image.Image
ImageLike = Picture | _arrays.ArrayLike
"""A file's path, the bytes of a PNG or JPEG, a PIL image, or an array: see `DigitClient.classify`."""

IMAGES_PER_CALL = 1024
"""Images in one call of `classify_many`: 0.8 MB of pixels, 3.2 MB of floats; servers accept 4 MB."""


class Stream:
    """The messages of one stream: request i belongs to answer i.

    What can't be read as a picture is sent as a request without one, which the server refuses in its place, and
    replaced by what was wrong when that answer comes. So no order has to be kept beside the stream's own.
    """

    def __init__(self, options: bytes) -> None:
        self._options = options
        self._unreadable: dict[int, InvalidImage] = {}
        self._sent = self._answered = 0

    def request(self, image: ImageLike) -> bytes:
        """Return the message that asks for an image."""
        try:
            rows = prepare(image)
        except InvalidImage as error:
            rows = np.empty((0, PIXELS), np.uint8)
            self._unreadable[self._sent] = error
        self._sent += 1
        return _codec.stream_request(request(rows, self._options))

    def result(self, answer: bytes) -> Columns | DigitsError:
        """Return what the next answer says."""
        unreadable = self._unreadable.pop(self._answered, None)
        self._answered += 1
        return _codec.stream_answer(answer) if unreadable is None else unreadable


def prepare(image: ImageLike) -> Rows:
    """Return one image as (1, 784), uint8 or float32: an array as it is, a picture prepared as MNIST's were.

    Raises:
        InvalidImage: It is none of the kinds of `ImageLike`, or can't be read.
    """
    if _arrays.is_array(image):
        return _arrays.row(image)
    if not isinstance(image, Picture):
        raise InvalidImage(f"image: {kind(image)}; allowed are a path, bytes, a PIL image or an array")
    prepared: Rows = pictures().prepare(image)
    return prepared


def pictures() -> ModuleType:
    """Return what reads pictures; it needs OpenCV, which who sends arrays alone is spared.

    Raises:
        InvalidImage: OpenCV is not installed.
    """
    try:
        from digits_client import _pictures  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        raise InvalidImage(f"image: pictures need OpenCV: pip install 'digits-client[pictures]' ({error})") from error
    return _pictures


def rows(images: npt.NDArray[np.generic] | Iterable[ImageLike]) -> Rows:
    """Return many images as (n, 784): one array of them, or any number of things that `prepare` takes.

    uint8 if all are, else float32.

    Raises:
        InvalidImage: One of them can't be read, or there are none.
    """
    if hasattr(images, "__array__"):
        many = _arrays.rows(images)
    else:
        many = _joined([_numbered(at, image) for at, image in enumerate(each(images))])
    if not len(many):
        raise InvalidImage("images: there are none")
    return many


def each(images: Iterable[ImageLike]) -> Iterator[ImageLike]:
    """Return an iterator of images.

    Raises:
        InvalidImage: They can't be iterated, or are one image, whose letters or bytes would be.
    """
    if isinstance(images, Picture):
        raise InvalidImage(f"images: {kind(images)}, which is one image; put it in a list, or use classify")
    try:
        return iter(images)
    except TypeError:
        raise InvalidImage(f"images: {kind(images)}; allowed are an array, or any number of images") from None


def encoded(rows: Rows) -> tuple[memoryview, bool]:
    """Return (n, 784) images as a request holds them, and whether they are floats."""
    is_float = rows.dtype != np.uint8
    return np.ascontiguousarray(rows, "<f4" if is_float else np.uint8).data, is_float


def request(rows: Rows, options: bytes) -> bytes:
    """Return the request for (n, 784) images."""
    data, is_float = encoded(rows)
    return _codec.request(options, data, is_float=is_float)


def portions(rows: Rows) -> list[Rows]:
    """Return (n, 784) images divided into what one call takes."""
    return [rows[start : start + IMAGES_PER_CALL] for start in range(0, len(rows), IMAGES_PER_CALL)]


def _numbered(at: int, image: ImageLike) -> Rows:
    try:
        return prepare(image)
    except InvalidImage as error:
        raise InvalidImage(f"images[{at}]: {error}") from error.__cause__


def _joined(each: list[Rows]) -> Rows:
    if any(one.dtype == np.float32 for one in each):
        scale = np.float32(1 / 255)
        return np.concatenate([one if one.dtype == np.float32 else one * scale for one in each], dtype=np.float32)
    return np.concatenate([np.empty((0, PIXELS), np.uint8), *each], dtype=np.uint8)


def kind(thing: object) -> str:
    """Return what something is, for who wanted something else."""
    return "None" if thing is None else f"an object of type {type(thing).__name__}"
