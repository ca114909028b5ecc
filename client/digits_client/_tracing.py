"""Spans of a client's calls, in the traces of an application that uses OpenTelemetry. Loaded only then.

Names and attributes are OpenTelemetry's semantic conventions for gRPC, https://opentelemetry.io/docs/specs/semconv/rpc/grpc.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

_others: contextvars.ContextVar[Sequence[Span]] = contextvars.ContextVar("others", default=())
"""Spans of those whose images travel in the current span's call."""


class _Spans:
    """Begins and ends the spans of calls to one target."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._tracer = trace.get_tracer("digits_client")

    def begin(self, details: Any) -> tuple[Span, Any]:
        """Return the span of a call, and the call's details with the span's identity in the metadata."""
        method = details.method if isinstance(details.method, str) else details.method.decode()
        attributes = {"rpc.system.name": "grpc", "rpc.method": method[1:], "server.address": self._target}
        others = _others.get()
        links = [Link(other.get_span_context()) for other in others]
        span = self._tracer.start_span(method[1:], kind=SpanKind.CLIENT, attributes=attributes, links=links)
        for other in others:
            other.add_link(span.get_span_context())
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        return span, details._replace(metadata=(*(details.metadata or ()), *carrier.items()))


def _end(span: Span, code: grpc.StatusCode) -> None:
    span.set_attribute("rpc.response.status_code", code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute("error.type", code.name)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


class Interceptor(_Spans, grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Makes spans of the calls of a synchronous channel."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Carry one call on."""
        span, details = self.begin(details)
        call = continuation(details, request)
        call.add_done_callback(lambda call: _end(span, call.code()))
        return call

    intercept_stream_stream = intercept_unary_unary  # type: ignore[assignment]


class _Awaited(_Spans):
    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._tasks: set[asyncio.Task[None]] = set()

    async def carry_on(self, continuation: Any, details: Any, request: Any) -> Any:
        span, details = self.begin(details)
        call = await continuation(details, request)

        async def end() -> None:
            _end(span, await call.code())

        task = asyncio.create_task(end())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call


class _Unary(_Awaited, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _Awaited.carry_on  # type: ignore[assignment]


class _Stream(_Awaited, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream = _Awaited.carry_on  # type: ignore[assignment]


def aio_interceptors(target: str) -> list[grpc.aio.ClientInterceptor]:
    """Return what makes spans of the calls of an asyncio channel: grpc wants an interceptor for each kind of call."""
    return [_Unary(target), _Stream(target)]


def merged(contexts: Sequence[contextvars.Context]) -> contextvars.Context:
    """Return the context for a call that carries the images of several callers, each in a context of its own.

    The call's span belongs to the first one's trace; the others' spans and it are linked.
    """
    spans = [context.run(trace.get_current_span) for context in contexts[1:]]
    contexts[0].run(_others.set, [span for span in spans if span.get_span_context().is_valid])
    return contexts[0]
