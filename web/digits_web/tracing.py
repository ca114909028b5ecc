"""OpenTelemetry spans of requests, the parents of the client's. Loaded only where the environment names a collector.

Exporter, sampler and resource are set by OpenTelemetry's own variables,
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.util.http import ExcludeList
from starlette.types import ASGIApp


def set_up() -> Callable[[ASGIApp], ASGIApp]:
    """Trace from now on, to the end of the process; return what puts a span around each request of an application."""
    os.environ.setdefault("OTEL_SERVICE_NAME", "digits-web")
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    GrpcAioInstrumentorClient().instrument()  # type: ignore[no-untyped-call]  # the calls of clients that are made from now on
    for handler in logging.getLogger().handlers:
        handler.addFilter(_add_trace)
    return lambda app: OpenTelemetryMiddleware(
        app, excluded_urls=ExcludeList(["/healthz"]), exclude_spans=["receive", "send"]
    )


def _add_trace(record: logging.LogRecord) -> bool:
    """Let a log line name the trace and the span it belongs to."""
    identity = trace.get_current_span().get_span_context()
    if identity.is_valid:
        record.trace_id = trace.format_trace_id(identity.trace_id)
        record.span_id = trace.format_span_id(identity.span_id)
    return True
