"""The asyncio client: only the calls; what they carry is made and read elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from functools import partial
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from digits_client import _arrays, _base, _channel, _codec, _requests, _results
from digits_client._coalesce import Coalescer
from digits_client._codec import Columns
from digits_client._errors import ClientClosed, DigitsError, PermissionDenied, Unsupported
from digits_client._reading import Number, Reading
from digits_client._requests import ImageLike
from digits_client._results import Model, Prediction, Predictions
from digits_client._transport import AsyncGrpcTransport, AsyncTransport

ReadT = TypeVar("ReadT")


class AsyncDigitClient(_base.BaseClient[AsyncTransport]):
    """Recognises digits on a server, for asyncio: as `DigitClient`, with coroutines. Use it on one event loop.

    Concurrent calls of `classify` are sent as one: a lone call is sent at once, and while calls are in flight others
    gather. Each keeps its own timeout, result and error; cancelling one changes nothing for the others.

    Close it, or use it in an `async with` statement. Arguments and errors are those of `DigitClient`; on a second event
    loop, as in another `asyncio.run`, it raises `ClientClosed`.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _coalescers: list[Coalescer]
    """Of bytes, and of floats: a request holds one kind."""

    async def classify(self, image: ImageLike, *, timeout_s: float | None = None) -> Prediction:
        """Return what one image shows: see `DigitClient.classify`. Pictures are read in another thread."""
        deadline = asyncio.get_running_loop().time() + self._timeout(timeout_s)
        data, is_float = _requests.encoded(await _in_thread(_requests.prepare, image))
        self._usable()
        return await self._coalescers[is_float].classify(bytes(data), deadline)

    async def read(self, image: ImageLike, *, timeout_s: float | None = None) -> Number:
        """Return the number that a picture shows: see `DigitClient.read`. The picture is read in another thread."""
        seconds = self._timeout(timeout_s)
        reading = await asyncio.to_thread(Reading, image)
        request = _requests.request(reading.rows, self._options)
        return reading.number(await self._predictions(request, len(reading.rows), seconds))

    async def classify_many(
        self, images: npt.NDArray[np.generic] | Iterable[ImageLike], *, timeout_s: float | None = None
    ) -> Predictions:
        """Return what many images show, as columns, in order: see `DigitClient.classify_many`."""
        timeout_s = self._timeout(timeout_s)
        rows = (
            _requests.rows(images)
            if isinstance(images, np.ndarray)
            else await asyncio.to_thread(_requests.rows, images)
        )
        answers: list[Columns] = []
        pending: deque[asyncio.Task[Columns]] = deque()
        try:
            for portion in _requests.portions(rows):
                request = _requests.request(portion, self._options)
                pending.append(asyncio.create_task(self._ask(request, len(portion), timeout_s)))
                if len(pending) == _channel.CALLS_AT_ONCE:
                    answers.append(await pending.popleft())
            while pending:
                answers.append(await pending.popleft())
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return _results.joined(answers, await self._classes(answers[-1], timeout_s))

    async def stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], *, timeout_s: float | None = None
    ) -> AsyncIterator[Prediction | DigitsError]:
        """Yield what each image shows, in order: see `DigitClient.stream`.

        `images` may be asynchronous; it is iterated on the event loop, pictures are read in another thread.
        """
        stream = _requests.Stream(self._options)
        failures: list[BaseException] = []
        given = images if isinstance(images, AsyncIterable) else _asynchronous(_requests.each(images))

        async def requests() -> AsyncIterator[bytes]:
            try:
                async for image in given:
                    yield await _in_thread(stream.request, image)
            except Exception as error:  # noqa: BLE001 - gRPC would swallow it; it belongs to the stream's caller
                failures.append(error)

        timeout_s = self._timeout(_base.STREAM_TIMEOUT_S if timeout_s is None else timeout_s)
        async for answer in self._usable().stream_async(requests(), timeout_s):
            result = stream.result(answer)
            if isinstance(result, DigitsError):
                yield result
            else:
                yield next(_results.each(result, await self._classes(result, self._timeout_s)))
        for failure in failures:
            raise failure

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Return the models that the server knows: see `DigitClient.models`."""
        return _results.models(await self._call(_channel.LIST_MODELS, b"", self._timeout(timeout_s)))

    async def health(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the server is ready to answer: see `DigitClient.health`."""
        return _results.is_serving(await self._call(_channel.CHECK, b"", self._timeout(timeout_s)))

    async def close(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._is_closed = True
        if self._loop is asyncio.get_running_loop():
            for coalescer in self._coalescers:
                coalescer.close()
        if self._transport:
            await self._transport.close_async()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _usable(self) -> AsyncTransport:
        """Return the transport, connected at the first call: grpc's channels belong to the loop that runs then."""
        self._check_usable()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            at_once = max(2, self._connection.connections)
            self._coalescers = [Coalescer(partial(self._together, is_float), at_once) for is_float in (False, True)]
        if self._loop is not loop:
            raise ClientClosed(
                "the client belongs to the event loop of its first call, and this is another; make a client in each "
                "asyncio.run"
            )
        if self._transport is None:
            self._transport = AsyncGrpcTransport(self._connection)
        return self._transport

    async def _call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        return await self._usable().call_async(method, request, timeout_s)

    async def _ask(self, request: bytes, count: int, timeout_s: float) -> Columns:
        return _codec.columns(await self._call(_channel.CLASSIFY, request, timeout_s), count)

    async def _together(self, is_float: bool, images: list[bytes], timeout_s: float) -> list[Prediction]:
        request = _codec.request(self._options, b"".join(images), is_float=is_float)
        return await self._predictions(request, len(images), timeout_s)

    async def _predictions(self, request: bytes, count: int, timeout_s: float) -> list[Prediction]:
        end = time.monotonic() + timeout_s
        answer = await self._ask(request, count, timeout_s)
        return list(_results.each(answer, await self._classes(answer, end - time.monotonic())))

    async def _classes(self, answer: Columns, timeout_s: float) -> tuple[str, ...]:
        """Return the labels of the version that answered; the first time, ask for them."""
        known = self._labels.get(answer)
        if known is None:
            try:
                listed = await self.models(timeout_s=max(timeout_s, _base.MIN_TIMEOUT_S))
            except (PermissionDenied, Unsupported):  # then classes go by their numbers
                listed = []
            known = self._labels.learn(answer, listed)
        return known


async def _in_thread(read: Callable[[ImageLike], ReadT], image: ImageLike) -> ReadT:
    """Read an image: an array at once, a picture in another thread, as decoding it takes a while."""
    return read(image) if _arrays.is_array(image) else await asyncio.to_thread(read, image)


async def _asynchronous(images: Iterable[ImageLike]) -> AsyncIterator[ImageLike]:
    for image in images:
        yield image
