"""A collector of traces as any OTLP exporter sees it: a gRPC server, here within the test."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


class Span:
    """A span as it was sent, with its identifiers in hexadecimal and its attributes as a dictionary."""

    def __init__(self, service, span):
        self.service, self.name = service, span.name
        self.kind = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.links = {link.span_id.hex() for link in span.links}
        self.is_error = span.status.code == span.status.STATUS_CODE_ERROR
        self.attributes = {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}

    def __repr__(self):
        return f"<{self.service} {self.kind} {self.name}>"


class Collector(pb_grpc.TraceServiceServicer):
    """Keeps the spans it is sent; an endpoint to give to exporters."""

    def __init__(self):
        self._spans, self._news = [], threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        pb_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request, _):  # noqa: N802 - named by the .proto
        with self._news:
            for resource in request.resource_spans:
                attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [Span(attributes["service.name"], span) for span in scope.spans]
            self._news.notify_all()
        return pb.ExportTraceServiceResponse()

    def wait_for(self, enough, timeout_s=20):
        """Return all spans as soon as `enough(spans)` is true."""
        end = time.monotonic() + timeout_s
        with self._news:
            while not enough(self._spans):
                assert self._news.wait(end - time.monotonic()), f"not enough: {self._spans}"
            return list(self._spans)

    def close(self):
        self._server.stop(None).wait()
