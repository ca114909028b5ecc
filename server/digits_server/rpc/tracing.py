"""An OpenTelemetry span for each RPC, with what became of it in its batch. Loaded only where wanted.

Names and attributes are OpenTelemetry's semantic conventions for gRPC, https://opentelemetry.io/docs/specs/semconv/rpc/grpc,
and `digits.*` of our own. Exporter, sampler and resource are set by OpenTelemetry's own variables,
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.
"""

from __future__ import annotations

import logging
import os
from contextvars import Token
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from opentelemetry import context as otel
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from digits_server.rpc.context import served

if TYPE_CHECKING:
    from digits_server.rpc.context import Context

SERVER_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that are errors from a server's point of view; others are the caller's."""


@dataclass
class RpcSpan:
    """The span of an RPC that has not ended."""

    span: Span
    token: Token[otel.Context]
    """Of the context in which it is the current span."""


class Tracing:
    """Makes spans and sends them to the collector that the environment names."""

    def __init__(self) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "digits-server")
        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("digits_server")
        for handler in logging.getLogger().handlers:
            handler.addFilter(_add_trace)

    def close(self) -> None:
        """Send what is left. Takes up to some seconds if nobody takes it: not for the event loop's thread."""
        self._provider.shutdown()

    def begin(self, method: str, context: Context) -> RpcSpan:
        """Begin the span of an RPC of `service/method`, a child of its caller's span, and make it the current one."""
        carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        parent = propagate.extract(carrier)
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        return RpcSpan(span, otel.attach(trace.set_span_in_context(span, parent)))

    def end(self, rpc: RpcSpan, code: grpc.StatusCode) -> bytes:
        """End a span; return the id of its trace, 16 bytes, if somebody records it, else none."""
        span = rpc.span
        span.set_attribute("rpc.response.status_code", code.name)
        if outcome := served.get():
            span.set_attribute("digits.queue_s", outcome.queue_s)
            span.set_attribute("digits.inference_s", outcome.inference_s)
            span.set_attribute("digits.batch_size", outcome.batch_size)
        if code.name in SERVER_FAULTS:
            span.set_attribute("error.type", code.name)
            span.set_status(Status(StatusCode.ERROR))
        span.end()
        otel.detach(rpc.token)
        identity = span.get_span_context()
        return identity.trace_id.to_bytes(16, "big") if identity.trace_flags.sampled else b""


def _add_trace(record: logging.LogRecord) -> bool:
    """Let a log line name the trace and the span it belongs to."""
    identity = trace.get_current_span().get_span_context()
    if identity.is_valid:
        record.trace_id = trace.format_trace_id(identity.trace_id)
        record.span_id = trace.format_span_id(identity.span_id)
    return True
