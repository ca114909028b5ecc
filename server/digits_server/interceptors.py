"""What every RPC has in common: its errors become statuses, its outcome is counted and timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from digits_server.errors import InvalidArgument, QueueFull, Rejected, ServerError, public
from digits_server.metrics import Metrics

if TYPE_CHECKING:  # generic only in the stubs
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our services, once for each method. Those of others (health, reflection) pass untouched.

    Args:
        services: Full names of the services to wrap.
        metrics: Where RPCs are counted.
    """

    def __init__(self, services: frozenset[str], metrics: Metrics) -> None:
        self._services = services
        self._metrics = metrics
        self._wrapped: dict[str, Handler] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0
        """RPCs whose handlers have not returned."""

    async def finished(self) -> None:
        """Return as soon as no RPC is in flight."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the handler of a method, wrapped."""
        wrapped = self._wrapped.get(details.method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(details)
        service, _, method = details.method.removeprefix("/").partition("/")
        if handler is None or service not in self._services:
            return handler
        self._wrapped[details.method] = wrapped = self._wrap(handler, service, method)
        return wrapped

    def _wrap(self, handler: Handler, service: str, method: str) -> Handler:
        wrap, kind = {
            (False, False): (grpc.unary_unary_rpc_method_handler, "unary"),
            (True, True): (grpc.stream_stream_rpc_method_handler, "bidi_stream"),
        }[handler.request_streaming, handler.response_streaming]
        behaviour: Any = handler.unary_unary or handler.stream_stream
        done = self._metrics.rpc(kind, service, method)

        async def call(request: Any, context: Context) -> Any:
            start, code = time.perf_counter(), grpc.StatusCode.CANCELLED
            self._enter()
            try:
                if isinstance(request, ServerError):
                    raise request
                response = await behaviour(request, context)
                code = grpc.StatusCode.OK
            except Exception as error:  # noqa: BLE001 - the border: nothing leaves unmapped
                answer = public(error)
                code = answer.code
                if isinstance(answer, Rejected):
                    self._metrics.rejected(answer.reason)
                context.set_trailing_metadata(trailers(answer))
                await context.abort(code, answer.message)
            else:
                return response
            finally:
                self._leave()
                done(code, time.perf_counter() - start)

        return wrap(
            call,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _enter(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def _leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()


def trailers(error: ServerError) -> tuple[tuple[str, str | bytes], ...]:
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
