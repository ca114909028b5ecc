"""Errors as gRPC tells them to programs: the trailers beside status and message."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from digits_server.errors import MAX_REQUEST_ID, InvalidArgument, QueueFull, ServerError

Trailers = tuple[tuple[str, str | bytes], ...]


def explain(error: ServerError) -> Trailers:
    """Return the trailing metadata that explain an error: google.rpc details, and when to retry."""
    status = Status(code=error.code.value[0], message=error.message)
    retry: Trailers = ()
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


def is_id(text: str) -> bool:
    """Return whether a caller's name for a request passes unchanged through headers and logs."""
    return len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable()


def named(request: object) -> Trailers:
    """Return the trailer that gives a request's name back; none for a request without one."""
    name = getattr(request, "request_id", "") or getattr(request, "id", "")
    return (("x-request-id", name),) if name and is_id(name) else ()
