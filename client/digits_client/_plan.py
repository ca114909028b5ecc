"""What travels together, and in which order: decided here, done by the clients. No network, no clock, no event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from digits_client import _images, _messages, _wire
from digits_client._errors import DigitsError, InvalidImage
from digits_client._images import ImageLike
from digits_client._messages import Prediction

MERGED_IMAGES = 256
"""Most images of different callers in one call: one more would save next to nothing, and share one more's fate."""
IMAGES_PER_CALL = 1024
"""Images in one call of `classify_many`: 0.8 MB of pixels, 3.2 MB of floats; servers accept 4 MB."""
CALLS_AT_ONCE = 2
"""Calls of `classify_many` in flight: one travels while the other is computed; more gained nothing when measured."""


class Waiting(Protocol):
    """A call that waits for company."""

    is_float: bool
    """Which of the two forms its image has: one request can carry only one."""

    def is_over(self) -> bool:
        """Return whether nobody wants its answer any more."""
        ...


Call = TypeVar("Call", bound=Waiting)


class Merger(Generic[Call]):
    """Says which waiting calls travel as one, and when.

    While fewer than `lanes` groups are on their way, whoever waits goes at once, alone or not; otherwise all wait, and
    those who wait go together. So nobody waits for company, and company comes by itself when there is much to do.

    Args:
        lanes: Groups that may be on their way at once.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._under_way = 0
        self._waiting: tuple[deque[Call], deque[Call]] = (deque(), deque())  # bytes and floats
        self._turn = 0

    def add(self, call: Call) -> None:
        """Let a call wait."""
        self._waiting[call.is_float].append(call)

    def take(self, *, is_forced: bool = False) -> list[Call]:
        """Return the next group to send, which `arrived` must follow; empty if nobody can go.

        Args:
            is_forced: Send it although all lanes are taken.
        """
        if self._under_way >= self._lanes and not is_forced:
            return []
        self._turn ^= 1  # both forms get their turn, whatever the other's number
        for waiting in (self._waiting[self._turn], self._waiting[self._turn ^ 1]):
            group: list[Call] = []
            while waiting and len(group) < MERGED_IMAGES:
                call = waiting.popleft()
                if not call.is_over():
                    group.append(call)
            if group:
                self._under_way += 1
                return group
        return []

    def arrived(self) -> None:
        """Free the lane of a group."""
        self._under_way -= 1

    def has_waiting(self) -> bool:
        """Return whether a call waits."""
        return any(self._waiting)


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
