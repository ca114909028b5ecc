"""What carries a client's calls as bytes: over gRPC; in tests, whatever is passed as `transport=`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Protocol

import grpc

from digits_client._channel import CALLS_AT_ONCE, CLASSIFY_STREAM, Connection, in_turn
from digits_client._errors import Border


class Transport(Protocol):
    """Carries the calls of a `DigitClient`. Methods have gRPC's names; failures are raised as `CallError`."""

    def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""

    def calls(self, method: str, requests: Iterable[bytes], timeout_s: float) -> Iterator[bytes]:
        """Yield the answers to messages that are a call each, in order."""

    def stream(self, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:
        """Yield the answers to a stream of messages, which is iterated in another thread if need be."""

    def close(self) -> None:
        """End calls in flight."""


class AsyncTransport(Protocol):
    """Carries the calls of an `AsyncDigitClient`, as `Transport` does."""

    async def call_async(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""

    def stream_async(self, requests: AsyncIterator[bytes], timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the answers to a stream of messages."""

    async def close_async(self) -> None:
        """End calls in flight."""


class GrpcTransport:
    """Carries calls over the channels of grpc, each in its turn."""

    def __init__(self, to: Connection) -> None:
        self._channels = to.channels(grpc)
        if to.interceptors:
            try:
                self._channels = [grpc.intercept_channel(channel, *to.interceptors) for channel in self._channels]
            except TypeError as error:
                raise ValueError(f"interceptors: {to.interceptors}; allowed are grpc's client interceptors") from error
        self._in_turn = in_turn(self._channels)
        self._metadata = to.metadata
        self._border = Border(to.hint)

    def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""
        with self._border:
            answer: bytes = next(self._in_turn)[method](request, timeout=timeout_s, metadata=self._metadata)
        return answer

    def calls(self, method: str, requests: Iterable[bytes], timeout_s: float) -> Iterator[bytes]:
        """Yield the answers to messages that are a call each, in order; some calls are in flight at once."""
        pending: deque[Any] = deque()
        with self._border:
            try:
                for request in requests:
                    call = next(self._in_turn)[method]
                    pending.append(call.future(request, timeout=timeout_s, metadata=self._metadata))
                    if len(pending) == CALLS_AT_ONCE:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for unwanted in pending:
                    unwanted.cancel()

    def stream(self, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:
        """Yield the answers to a stream of messages, which grpc iterates in another thread."""
        with self._border:
            call = next(self._in_turn)[CLASSIFY_STREAM](requests, timeout=timeout_s, metadata=self._metadata)
            try:
                yield from call
            finally:
                call.cancel()  # where the caller left early; afterwards it does nothing

    def close(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._border.is_closed = True
        for channel in self._channels:
            channel.close()


class AsyncGrpcTransport:
    """Carries calls over the channels of grpc.aio, each in its turn, on the event loop that runs when it is made."""

    def __init__(self, to: Connection) -> None:
        self._channels = to.channels(grpc.aio, interceptors=to.interceptors)
        self._in_turn = in_turn(self._channels)
        self._metadata = to.metadata
        self._border = Border(to.hint)

    async def call_async(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""
        with self._border:
            answer: bytes = await next(self._in_turn)[method](request, timeout=timeout_s, metadata=self._metadata)
        return answer

    async def stream_async(self, requests: AsyncIterator[bytes], timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the answers to a stream of messages."""
        with self._border:
            call = next(self._in_turn)[CLASSIFY_STREAM](requests, timeout=timeout_s, metadata=self._metadata)
            try:
                async for answer in call:
                    yield answer
            finally:
                call.cancel()  # where the caller left early; afterwards it does nothing

    async def close_async(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._border.is_closed = True
        for channel in self._channels:
            await channel.close()
