"""The asyncio client: only the calls; what they carry is made and read elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from digits_client import _images, _messages, _plan, _settings, _wire
from digits_client._errors import Cancelled, DigitsError, from_rpc_error
from digits_client._images import ImageLike
from digits_client._merging import Merging
from digits_client._messages import Model, Prediction, Predictions


class AsyncDigitClient(_settings.BaseClient):
    """Recognises digits on a server, for asyncio: as `DigitClient`, with coroutines. Use it on one event loop.

    Concurrent calls of `classify` travel as one: a lone call is sent at once, and while calls are on their way others
    gather. Each keeps its own timeout, result and error; cancelling one changes nothing for the others.

    Close it, or use it in an `async with` statement. Arguments and errors are those of `DigitClient`.
    """

    _merging: Merging | None = None

    async def classify(self, image: ImageLike, *, timeout_s: float | None = None) -> Prediction:
        """Return what one image shows: see `DigitClient.classify`. Pictures are read in another thread."""
        deadline = asyncio.get_running_loop().time() + self._timeout(timeout_s)
        row = (
            _images.prepare(image) if isinstance(image, np.ndarray) else await asyncio.to_thread(_images.prepare, image)
        )
        data, is_float = _plan.encoded(row)
        return await self._connect().classify(data, deadline, is_float=is_float)

    async def classify_many(
        self, images: npt.NDArray[np.generic] | Iterable[ImageLike], *, timeout_s: float | None = None
    ) -> Predictions:
        """Return what many images show, as columns, in order: see `DigitClient.classify_many`."""
        rows = _images.rows(images) if isinstance(images, np.ndarray) else await asyncio.to_thread(_images.rows, images)
        answers: list[_wire.Columns] = []
        pending: deque[asyncio.Task[_wire.Columns]] = deque()
        try:
            for request, count in _plan.requests(rows, self._options):
                pending.append(asyncio.create_task(self._columns(request, count, self._timeout(timeout_s))))
                if len(pending) == _plan.CALLS_AT_ONCE:
                    answers.append(await pending.popleft())
            while pending:
                answers.append(await pending.popleft())
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return _messages.joined(answers)

    async def stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], *, timeout_s: float | None = None
    ) -> AsyncIterator[Prediction | DigitsError]:
        """Yield what each image shows, in order: see `DigitClient.stream`. `images` may be asynchronous."""
        stream = _plan.Stream(self._options)
        failures: list[BaseException] = []

        async def requests() -> AsyncIterator[bytes]:
            try:
                if isinstance(images, AsyncIterable):
                    async for image in images:
                        yield stream.request(image)
                else:
                    for image in images:
                        yield stream.request(image)
            except Exception as error:  # noqa: BLE001 - gRPC would swallow it; it belongs to the stream's caller
                failures.append(error)

        timeout_s = _settings.STREAM_TIMEOUT_S if timeout_s is None else timeout_s
        async for answer in self._ask_stream(requests(), timeout_s):
            yield stream.result(answer)
        for failure in failures:
            raise failure

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Return the models that the server knows: see `DigitClient.models`."""
        return _messages.models(await self._ask(_settings.LIST_MODELS, b"", self._timeout(timeout_s)))

    async def health(self, *, timeout_s: float | None = None) -> bool:
        """Return whether the server is ready to answer: see `DigitClient.health`."""
        return _messages.is_serving(await self._ask(_settings.CHECK, b"", self._timeout(timeout_s)))

    async def close(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._is_closed = True
        if self._merging:
            self._merging.close()
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _connect(self) -> Merging:
        """Connect at the first call, for channels belong to the event loop that runs then."""
        self._check_usable()
        if self._merging is None:
            self._open_channels()
            merged = self._tracing.merged if self._tracing else None
            ask = functools.partial(self._ask, _settings.CLASSIFY)
            self._merging = Merging(ask, self._options, max(2, self._connections), merged)
        return self._merging

    def _open_channels(self) -> None:
        credentials, options = self._credentials, self._channel_options
        spans = self._tracing.aio_interceptors(self._target) if self._tracing else None
        self._channels = [
            grpc.aio.secure_channel(self._target, credentials, options, interceptors=spans)
            if credentials
            else grpc.aio.insecure_channel(self._target, options, interceptors=spans)
            for _ in range(self._connections)
        ]
        self._callables: Iterator[dict[str, Any]] = itertools.cycle([_settings.callables(it) for it in self._channels])

    async def _ask(self, method: str, request: bytes, timeout_s: float) -> bytes:
        self._connect()
        call = next(self._callables)[method](request, timeout=timeout_s, metadata=self._metadata)
        with self._translated():
            answer: bytes = await call
        return answer

    async def _columns(self, request: bytes, count: int, timeout_s: float) -> _wire.Columns:
        return _wire.columns(await self._ask(_settings.CLASSIFY, request, timeout_s), count)

    async def _ask_stream(self, requests: AsyncIterator[bytes], timeout_s: float) -> AsyncIterator[bytes]:
        self._connect()
        call = next(self._callables)[_settings.CLASSIFY_STREAM](requests, timeout=timeout_s, metadata=self._metadata)
        try:
            with self._translated():
                async for answer in call:
                    yield answer
        finally:
            call.cancel()  # where the caller left early; afterwards it does nothing

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn grpc's errors into ours, also the cancellation that closing the client means for calls in flight."""
        try:
            yield
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError as error:
            if self._is_closed:
                raise Cancelled(grpc.StatusCode.CANCELLED, "the client was closed") from error
            raise
