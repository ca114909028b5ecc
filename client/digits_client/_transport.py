"""What carries a client's calls as bytes: over gRPC; in tests, whatever is passed as `transport=`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from digits_client._channel import CHANNEL_OPTIONS, CLASSIFY_STREAM, Connection, callables
from digits_client._errors import Cancelled, ClientClosed, mapped_errors


class Pending(Protocol):
    """A call that has begun."""

    def result(self) -> bytes:
        """Wait for the answer, or raise a `CallError`."""

    def cancel(self) -> Any:
        """Give up."""


class Transport(Protocol):
    """Carries the calls of a `DigitClient`. Methods have gRPC's names; failures are raised as `CallError`."""

    def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""

    def begin(self, method: str, request: bytes, timeout_s: float) -> Pending:
        """Send one message, and don't wait for the answer."""

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
        self._to = to
        options = [*CHANNEL_OPTIONS, *to.options]
        self._channels = [
            grpc.secure_channel(to.target, to.credentials, options)
            if to.credentials
            else grpc.insecure_channel(to.target, options)
            for _ in range(to.connections)
        ]
        if to.interceptors:
            try:
                self._channels = [grpc.intercept_channel(channel, *to.interceptors) for channel in self._channels]
            except TypeError as error:
                raise ValueError(f"interceptors: {to.interceptors}; allowed are grpc's client interceptors") from error
        self._callables = itertools.cycle([callables(channel) for channel in self._channels])
        self._is_closed = False

    def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""
        with self._mapped_errors():
            answer: bytes = next(self._callables)[method](request, timeout=timeout_s, metadata=self._to.metadata)
        return answer

    def begin(self, method: str, request: bytes, timeout_s: float) -> Pending:
        """Send one message, and don't wait for the answer."""
        with self._mapped_errors():
            return _Pending(
                next(self._callables)[method].future(request, timeout=timeout_s, metadata=self._to.metadata),
                self._to.hint,
            )

    def stream(self, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:
        """Yield the answers to a stream of messages, which grpc iterates in another thread."""
        with self._mapped_errors():
            call = next(self._callables)[CLASSIFY_STREAM](requests, timeout=timeout_s, metadata=self._to.metadata)
            try:
                yield from call
            finally:
                call.cancel()  # where the caller left early; afterwards it does nothing

    def close(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._is_closed = True
        for channel in self._channels:
            channel.close()

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            with mapped_errors(self._to.hint):
                yield
        except ValueError as error:  # grpc's, for a call on a channel that another thread has just closed
            if self._is_closed:
                raise ClientClosed("the client is closed") from error
            raise


class _Pending:
    def __init__(self, call: Any, hint: str) -> None:
        self._call, self._hint = call, hint

    def result(self) -> bytes:
        with mapped_errors(self._hint):
            answer: bytes = self._call.result()
        return answer

    def cancel(self) -> None:
        self._call.cancel()


class AsyncGrpcTransport:
    """Carries calls over the channels of grpc.aio, each in its turn, on the event loop that runs when it is made."""

    def __init__(self, to: Connection) -> None:
        self._to = to
        options = [*CHANNEL_OPTIONS, *to.options]
        self._channels = [
            grpc.aio.secure_channel(to.target, to.credentials, options, interceptors=to.interceptors)
            if to.credentials
            else grpc.aio.insecure_channel(to.target, options, interceptors=to.interceptors)
            for _ in range(to.connections)
        ]
        self._callables = itertools.cycle([callables(channel) for channel in self._channels])
        self._is_closed = False

    async def call_async(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer to one message."""
        with self._mapped_errors():
            answer: bytes = await next(self._callables)[method](request, timeout=timeout_s, metadata=self._to.metadata)
        return answer

    async def stream_async(self, requests: AsyncIterator[bytes], timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the answers to a stream of messages."""
        with self._mapped_errors():
            call = next(self._callables)[CLASSIFY_STREAM](requests, timeout=timeout_s, metadata=self._to.metadata)
            try:
                async for answer in call:
                    yield answer
            finally:
                call.cancel()  # where the caller left early; afterwards it does nothing

    async def close_async(self) -> None:
        """End the connections; calls in flight are cancelled."""
        self._is_closed = True
        for channel in self._channels:
            await channel.close()

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            with mapped_errors(self._to.hint):
                yield
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            if self._is_closed:  # grpc cancels the tasks that wait for calls on a channel that is closed
                raise Cancelled(grpc.StatusCode.CANCELLED, "the client was closed") from error
            raise
