"""OpenTelemetry spans of each call: the RPC, its wait in the queue, its batch, the run. Loaded only where wanted.

Names and attributes of the RPC's span are OpenTelemetry's semantic conventions for gRPC,
https://opentelemetry.io/docs/specs/semconv/rpc/grpc. Exporter, sampler and resource are set by OpenTelemetry's own
variables, https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import context as otel
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from digits_server.inference.batcher import Batcher
from digits_server.inference.request import AnswersT, Job, Outcome, RowsT
from digits_server.rpc.interceptor import Ended

if TYPE_CHECKING:
    from digits_server.rpc.interceptor import Context

BATCH_OPEN_S = 0.1
"""How long after its first answer the span of a batch takes in links to further calls."""
SERVER_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that are errors from a server's point of view; others are the caller's."""


class Tracing:
    """Makes spans and sends them to the collector that the environment names."""

    def __init__(self) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "digits-server")
        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("digits_server")
        self._batches: dict[int, tuple[Span, int, object]] = {}  # by identity of the answers, kept alive beside
        for handler in logging.getLogger().handlers:
            handler.addFilter(_add_trace)

    def close(self) -> None:
        """Send what is left. Takes up to some seconds if nobody takes it: not for the event loop's thread."""
        for key in list(self._batches):
            self._end_batch(key)
        self._provider.shutdown()

    def batcher(self, model: str) -> Callable[..., Batcher[Any, Any]]:
        """Return what makes the batcher of a model, `name/version`, as `Batcher` does, but with spans."""
        return functools.partial(_TracedBatcher, self, model)

    def rpc(self, method: str, _request: object, context: Context) -> Ended:
        """Begin the span of an RPC, a child of its caller's span, and make it the current one."""
        carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        parent = propagate.extract(carrier)
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        token = otel.attach(trace.set_span_in_context(span, parent))

        def ended(code: grpc.StatusCode) -> bytes:
            span.set_attribute("rpc.response.status_code", code.name)
            if code.name in SERVER_FAULTS:
                span.set_attribute("error.type", code.name)
                span.set_status(Status(StatusCode.ERROR))
            span.end()
            otel.detach(token)
            identity = span.get_span_context()
            return identity.trace_id.to_bytes(16, "big") if identity.trace_flags.sampled else b""

        return ended

    def phases(self, call: Span, model: str, submitted: float, outcome: Outcome[Any]) -> None:
        """Add to an RPC's span how its rows fared in a batch, which is known when that is over.

        Args:
            call: Span of the RPC.
            model: Its model, `name/version`.
            submitted: When the rows were admitted, on the monotonic clock.
            outcome: What became of them.
        """
        now_ns = time.time_ns() - time.monotonic_ns()
        start, began, ended = (
            now_ns + round(1e9 * seconds)
            for seconds in (
                submitted,
                submitted + outcome.queue_s,
                submitted + outcome.queue_s + outcome.inference_s,
            )
        )
        parent = trace.set_span_in_context(call, otel.Context())
        attributes: dict[str, str | int] = {"digits.model": model, "digits.batch.size": outcome.batch_size}
        key = id(outcome.answers)
        if key in self._batches:
            batch = self._batches[key][0]
            batch.add_link(call.get_span_context())
        else:  # in the trace of the oldest of its calls, so that it is kept where that is
            links = [Link(call.get_span_context())]
            batch = self._tracer.start_span("batch", parent, attributes=attributes, links=links, start_time=start)
            self._batches[key] = batch, ended, outcome.answers
            asyncio.get_running_loop().call_later(BATCH_OPEN_S, self._end_batch, key)
        images = {"digits.images": outcome.end - outcome.start}
        self._tracer.start_span("queue", parent, attributes=images, start_time=start).end(began)
        links = [Link(batch.get_span_context())]
        run = self._tracer.start_span("inference", parent, attributes=attributes, links=links, start_time=began)
        run.end(ended)

    def _end_batch(self, key: int) -> None:
        if key in self._batches:
            batch, ended, _ = self._batches.pop(key)
            batch.end(ended)


class _TracedBatcher(Batcher[RowsT, AnswersT]):
    """A batcher that tells what became of requests that came while a recorded span was current."""

    def __init__(self, tracing: Tracing, model: str, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._tracing = tracing
        self._model = model
        self._spans: dict[Job[RowsT, AnswersT], Span] = {}

    def admit(self, job: Job[RowsT, AnswersT]) -> None:
        """Take a request in, as `Batcher.admit`."""
        super().admit(job)
        call = trace.get_current_span()
        if call.is_recording():
            self._spans[job] = call

    def release(self, job: Job[RowsT, AnswersT]) -> None:
        """Forget a request, as `Batcher.release`."""
        super().release(job)
        if call := self._spans.pop(job, None):
            for outcome in job.outcomes:
                self._tracing.phases(call, self._model, job.submitted, outcome)


def _add_trace(record: logging.LogRecord) -> bool:
    """Let a log line name the trace and the span it belongs to."""
    identity = trace.get_current_span().get_span_context()
    if identity.is_valid:
        record.trace_id = trace.format_trace_id(identity.trace_id)
        record.span_id = trace.format_span_id(identity.span_id)
    return True
