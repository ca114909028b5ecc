"""What every RPC has in common: its errors become statuses, its outcome is counted and timed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from digits_server.errors import InvalidArgument, QueueFull, Rejected, ServerError, public
from digits_server.metrics.definitions import Metrics, RpcCounter
from digits_server.rpc import context as calls
from digits_server.rpc.auth import Metadata
from digits_server.rpc.methods import Method
from digits_server.rpc.transports import Transport

if TYPE_CHECKING:  # generic only in the stubs
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]

Trailers = tuple[tuple[str, str | bytes], ...]
Ended = Callable[[grpc.StatusCode], bytes]
"""Told how an RPC ended; returns the id of its trace, 16 bytes, if somebody records it, else none."""
Observer = Callable[[str, Any, "Context"], Ended]
"""Told of an RPC that begins: its method as `service/method`, the request or the iterator of them, the context."""


class Intercepted:
    """A server as the generated `add_…_to_server` functions see it, that wraps each handler it is given.

    Handlers are wrapped once, when they are added; a `grpc.aio.ServerInterceptor` would be asked again at each call,
    which takes longer than what it does. Services added to the server itself (health, reflection) pass untouched.

    Args:
        transport: Where the wrapped handlers go.
        metrics: Where RPCs are counted.
        guard: Returns what refuses a method's calls by their metadata, or None where nobody is refused.
        observer: Told of each RPC, if anybody wants to know.
    """

    def __init__(
        self,
        transport: Transport,
        metrics: Metrics,
        guard: Callable[[str], Callable[[Metadata], None] | None],
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._transport = transport
        self._guard = guard
        self._server = transport.server
        self._metrics = metrics
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
        """Ignore: the same handlers come by name, where they can be wrapped."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Add the handlers of a service, wrapped."""
        wrapped = {method: self._wrap(handler, service, method) for method, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrap(self, handler: Handler, service: str, method: str) -> Handler:
        wrap, kind = {
            (False, False): (grpc.unary_unary_rpc_method_handler, "unary"),
            (True, True): (grpc.stream_stream_rpc_method_handler, "bidi_stream"),
        }[handler.request_streaming, handler.response_streaming]
        behaviour: Any = handler.unary_unary or handler.stream_stream
        deserialize = _tolerant(getattr(behaviour, "reads", handler.request_deserializer))
        count = self._metrics.rpc(kind, service, method)
        path = f"/{service}/{method}"
        wrapped = Method(self, behaviour, deserialize, self._guard(path), count)
        if kind == "unary" and not inspect.iscoroutinefunction(behaviour) and not self._observer:
            # Not with an observer, which needs a task: the span is its context's.
            self._transport.add_direct(path, wrapped.begin)
        return wrap(
            self._observed(wrapped.call, count, (kind, service, method)),
            request_deserializer=deserialize,
            response_serializer=_serialize,
        )

    def begin(self, count: int = 1) -> None:
        """Count RPCs in."""
        self.in_flight += count

    def end(self, count: int = 1) -> None:
        """Count RPCs out."""
        self.in_flight -= count
        if not self.in_flight:
            self._idle.set()

    def refuse(self, error: Exception, request: Any) -> tuple[ServerError, Trailers]:
        """Return what the caller is told of an error: the status, and its trailers."""
        answer = public(error, request)
        if isinstance(answer, Rejected):
            self._metrics.rejected(answer.reason)
        explained = trailers(answer, pushback=self._transport.allows_pushback)
        return answer, (*explained, *calls.named(request))

    def _observed(self, call: Callable[..., Awaitable[Any]], count: RpcCounter, labels: tuple[str, str, str]) -> Any:
        """Return what tells the observer of a call and makes it; without an observer, the call itself."""
        observer = self._observer
        if observer is None:
            return call
        method = "/".join(labels[1:])

        async def observed(request: Any, context: Context) -> Any:
            ended = observer(method, request, context)

            def done(code: grpc.StatusCode, elapsed_s: float, times: int = 1, _trace_id: bytes = b"") -> None:
                count(code, elapsed_s, times, ended(code))

            return await call(request, context, done)

        return observed


class Tolerant:
    """A server as the generated functions of other people's services see it: health, reflection.

    What comes there and can't be read is refused; else it would count as a fault of ours, with a stack in the log.

    Args:
        server: Where the wrapped handlers go.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Ignore, as `Intercepted` does."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Add the handlers of a service, wrapped."""
        wrapped = {method: self._wrap(handler) for method, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)

    @staticmethod
    def _wrap(handler: Handler) -> Handler:
        behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream

        async def call(request: Any, context: Context) -> Any:
            return await behaviour(await readable(request, context), context)

        async def stream(requests: Any, context: Context) -> Any:
            async for response in behaviour((await readable(request, context) async for request in requests), context):
                yield response

        async def readable(request: Any, context: Context) -> Any:
            if isinstance(request, ServerError):
                await context.abort(request.code, request.message)
            return request

        deserializer, serializer = _tolerant(handler.request_deserializer), handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, deserializer, serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(call, deserializer, serializer)
        return grpc.unary_unary_rpc_method_handler(call, deserializer, serializer)


def trailers(error: ServerError, *, pushback: bool = True) -> Trailers:
    """Return the trailing metadata that explain an error to programs: google.rpc details, and when to retry."""
    status = Status(code=error.code.value[0], message=error.message)
    retry: tuple[tuple[str, str], ...] = ()
    match error:
        case InvalidArgument():
            violation = BadRequest.FieldViolation(field=error.field, description=error.fault)
            status.details.add().Pack(BadRequest(field_violations=[violation]))
        case QueueFull():
            delay = Duration()
            delay.FromNanoseconds(int(error.retry_after_s * 1e9))
            status.details.add().Pack(RetryInfo(retry_delay=delay))
            if pushback:
                retry = (("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_s * 1000)))),)
    return (("grpc-status-details-bin", status.SerializeToString()), *retry)


def _tolerant(deserialize: Any) -> Callable[[bytes], Any]:
    """Return a deserializer that hands on what it can't read as an error; raising would end as UNKNOWN."""

    def deserialize_or_explain(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return InvalidArgument("message", f"its {len(data)} bytes are not a message of the expected type")

    return deserialize_or_explain


def _serialize(response: Any) -> bytes:
    """Return a message's bytes; handlers that are called often return bytes themselves."""
    return response if type(response) is bytes else response.SerializeToString()
