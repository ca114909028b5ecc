"""What every RPC has in common: who may call, what happens while draining, what errors become, who counts and tells."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from digits_server.errors import Draining, InvalidArgument, Rejected, ServerError, public
from digits_server.metrics.definitions import Metrics
from digits_server.rpc import access_log
from digits_server.rpc.auth import Metadata
from digits_server.rpc.status import explain, named

if TYPE_CHECKING:
    from digits_server.rpc.context import Answer, Context, Handler
    from digits_server.rpc.tracing import Tracing

OPEN_SERVICES = ("grpc.health.v1.", "grpc.reflection.")
"""Packages for everybody, at any time: neither counted nor waited for, for a watch never ends."""


class Interceptor:
    """Holds the handlers of all services, each wrapped once; a front looks a call's handler up by its path.

    To the generated `add_…_to_server` functions it is as much of a `grpc.aio.Server` as they need.

    Args:
        metrics: Where RPCs are counted.
        guard: Returns what refuses a method's calls by their metadata, or None where nobody is refused.
        tracing: Makes a span for each RPC, if anybody wants them.
        log_share: Share of the RPCs that get a line in the log.
    """

    def __init__(
        self,
        metrics: Metrics,
        guard: Callable[[str], Callable[[Metadata], None] | None],
        tracing: Tracing | None = None,
        log_share: float = 0.0,
    ) -> None:
        self._metrics = metrics
        self._guard = guard
        self._tracing = tracing
        self._log_share = log_share
        self._handlers: dict[str, Handler] = {}  # by path
        self._idle = asyncio.Event()
        self.in_flight = 0
        """RPCs whose handlers have not returned."""
        self.is_draining = False
        """Whether to refuse what comes."""

    async def finished(self) -> None:
        """Return as soon as no RPC is in flight."""
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()

    def add_generic_rpc_handlers(self, _handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Ignore: the same handlers come by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Take the handlers of a service."""
        for method, handler in handlers.items():
            path = f"/{service}/{method}"
            self._handlers[path] = self._wrap(handler, path)

    def handler(self, path: str) -> Handler | None:
        """Return the handler of a method; None: there is no such method."""
        return self._handlers.get(path)

    def _wrap(self, handler: Handler, path: str) -> Handler:
        kind, wrap = {
            (False, False): ("unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("server_stream", grpc.unary_stream_rpc_method_handler),
            (True, True): ("bidi_stream", grpc.stream_stream_rpc_method_handler),
        }[handler.request_streaming, handler.response_streaming]
        answer = _answering(handler.unary_unary or handler.unary_stream or handler.stream_stream)
        call = self._plain(answer) if path[1:].startswith(OPEN_SERVICES) else self._counted(answer, path, kind)
        deserialize = handler.request_deserializer and _tolerant(handler.request_deserializer)
        return wrap(call, request_deserializer=deserialize, response_serializer=handler.response_serializer)

    def _plain(self, answer: Answer) -> Answer:
        """Return what makes a call of other people's service: only what can't be read is refused."""

        async def call(request: object, context: Context) -> object:
            try:
                return await answer(_checked(request), context)
            except InvalidArgument as error:
                await context.abort(error.code, error.message)
            except NotImplementedError:  # grpc_health adds `List` and does not serve it
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        return call

    def _counted(self, answer: Answer, path: str, kind: str) -> Answer:
        service, _, method = path[1:].rpartition("/")
        count = self._metrics.rpc(kind, service, method)
        guard, tracing, log_share = self._guard(path), self._tracing, self._log_share

        async def call(request: object, context: Context) -> object:
            start, code = time.monotonic(), grpc.StatusCode.CANCELLED
            response = refusal = None
            span = tracing.begin(path[1:], context) if tracing else None
            self.in_flight += 1
            try:
                self._check(guard, request, context)
                response = await answer(request, context)
                code = grpc.StatusCode.OK
            except Exception as error:  # noqa: BLE001 - the border: nothing leaves unmapped
                refusal = self.refusal(error, request)
                code = refusal.code
            finally:  # before the caller can know
                elapsed_s = time.monotonic() - start
                if access_log.is_chosen(log_share):
                    access_log.write(path[1:], code, elapsed_s, request, context)
                count(code, elapsed_s, tracing.end(span, code) if tracing and span else b"")
                self._left()
            if refusal:
                await _abort(context, refusal, (*explain(refusal), *named(request)))
            return response

        return call

    def _check(self, guard: Callable[[Metadata], None] | None, request: object, context: Context) -> None:
        """Refuse what the guard refuses, what comes while the server drains, and what can't be read."""
        if guard:
            guard(context.invocation_metadata() or ())
        if self.is_draining:
            raise Draining("the server is shutting down")
        if isinstance(request, InvalidArgument):
            raise request

    def _left(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    def refusal(self, error: Exception, request: object) -> ServerError:
        """Return what a caller is told of an error, and count it if the request was refused on arrival.

        Raises:
            CancelledError: Nobody is there to be told.
        """
        if _has_left(error):
            raise asyncio.CancelledError from error
        refusal = public(error, request)
        if isinstance(refusal, Rejected):
            self._metrics.rejected(refusal.reason)
        return refusal


def _tolerant(deserialize: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Return a deserializer that hands on the error for what it can't read: raised there, it would be UNKNOWN."""

    def deserialize_or_explain(data: bytes) -> object:
        try:
            return deserialize(data)
        except DecodeError:
            return InvalidArgument("message", f"its {len(data)} bytes are not a message of the expected type")

    return deserialize_or_explain


def _answering(behaviour: Any) -> Answer:
    """Return a handler as a coroutine, though it be a generator: then its responses are written."""
    if not inspect.isasyncgenfunction(behaviour):
        return behaviour  # type: ignore[no-any-return]

    async def write_all(request: object, context: Context) -> None:
        async for response in behaviour(request, context):
            await context.write(response)

    return write_all


def _checked(request: object) -> object:
    """Return a request, or requests that are checked as they come.

    Raises:
        InvalidArgument: It can't be read.
    """
    if isinstance(request, InvalidArgument):
        raise request
    return _each_checked(request) if isinstance(request, AsyncIterator) else request


async def _each_checked(requests: AsyncIterator[object]) -> AsyncIterator[object]:
    async for request in requests:
        yield _checked(request)


async def _abort(context: Context, refusal: ServerError, trailers: Sequence[tuple[str, str | bytes]]) -> None:
    """End an RPC with a status alone: clients retry no RPC that has sent them a message, were it empty.

    grpc keeps what `abort` raises and raises it again itself. Not let go of its frames, it would keep the request.
    """
    try:
        await context.abort(refusal.code, refusal.message, trailers)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = aborted.__context__ = None


def _has_left(error: Exception) -> bool:
    """Return whether an error, or one in a group, is a front's about an answer that nobody is there to take."""
    return ExceptionGroup("", [error]).subgroup((grpc.aio.InternalError, ConnectionError)) is not None
