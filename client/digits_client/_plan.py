"""What goes into which message of a call: decided here, done by the clients. No network, no clock, no event loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from digits_client import _images, _messages, _wire
from digits_client._errors import DigitsError, InvalidImage
from digits_client._images import ImageLike
from digits_client._messages import Prediction

IMAGES_PER_CALL = 1024
"""Images in one call of `classify_many`: 0.8 MB of pixels, 3.2 MB of floats; servers accept 4 MB."""
CALLS_AT_ONCE = 2
"""Calls of `classify_many` in flight: one travels while the other is computed; more gained nothing when measured."""


class Stream:
    """The messages of one stream: request i belongs to answer i.

    What can't be read as an image is sent as a request without one, which the server refuses in its place, and
    replaced by what was wrong when that answer comes. So no order has to be kept beside the stream's own.
    """

    def __init__(self, options: bytes) -> None:
        self._options = options
        self._unreadable: dict[int, InvalidImage] = {}
        self._sent = self._answered = 0

    def request(self, image: ImageLike) -> bytes:
        """Return the message that asks for an image."""
        data, is_float = b"", False
        try:
            data, is_float = encoded(_images.prepare(image))
        except InvalidImage as error:
            self._unreadable[self._sent] = error
        self._sent += 1
        return _wire.stream_request(_wire.request(self._options, data, is_float=is_float))

    def result(self, answer: bytes) -> Prediction | DigitsError:
        """Return what the next answer says."""
        unreadable = self._unreadable.pop(self._answered, None)
        self._answered += 1
        if unreadable is not None:
            return unreadable
        answered = _wire.stream_answer(answer)
        return answered if isinstance(answered, DigitsError) else next(_messages.each(answered))


def encoded(rows: _images.Rows) -> tuple[bytes, bool]:
    """Return (n, 784) images as a request holds them, and whether they are floats."""
    is_float = rows.dtype != np.uint8
    return (rows.astype("<f4", copy=False) if is_float else rows).tobytes(), is_float


def requests(rows: npt.NDArray[np.uint8] | npt.NDArray[np.float32], options: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the requests for (n, 784) images, each with the number of images in it."""
    for start in range(0, len(rows), IMAGES_PER_CALL):
        some = rows[start : start + IMAGES_PER_CALL]
        data, is_float = encoded(some)
        yield _wire.request(options, data, is_float=is_float), len(some)
