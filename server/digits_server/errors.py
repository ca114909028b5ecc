"""The errors that callers see. An error class is its gRPC status: who meets a fault raises, one interceptor answers.

ServerError
├── InvalidArgument      the request is wrong, and will be wrong again
├── NotFound             no such model or version
├── Rejected             refused on arrival, counted by reason
│   ├── QueueFull        too much work is waiting: retry later
│   ├── DeadlineTooShort the deadline can't be met: do not retry with the same one
│   ├── Unauthenticated  no token, or none that is good now
│   ├── PermissionDenied the token is for other things
│   ├── Draining         this server is going away: retry elsewhere, at once
│   └── NotReady         its models are still to come: retry elsewhere
├── DeadlineExpired      the deadline passed while the request waited
└── InternalError        what any other exception becomes on its way out
"""

from __future__ import annotations

import logging
import reprlib
import uuid

import grpc

log = logging.getLogger(__name__)

MAX_REQUEST_ID = 128
"""Characters of a `request_id`."""

_short = reprlib.Repr()
_short.maxstring = 80


def quoted(sent: object) -> str:
    """Return what a caller has sent as an error may show it: escaped and cut short, for it may be megabytes."""
    return _short.repr(sent)


class ServerError(Exception):
    """Base of the errors whose message may be shown to the caller."""

    code: grpc.StatusCode

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgument(ServerError):
    """Raise when the request can never succeed as it is.

    Args:
        field: Name of the request's field, as in the .proto.
        fault: What is wrong with it: the value and what is allowed.
    """

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(f"{field}: {fault}")
        self.field = field
        self.fault = fault


class NotFound(ServerError):
    """Raise when the named model or version is not served here."""

    code = grpc.StatusCode.NOT_FOUND


class Rejected(ServerError):
    """Base of refusals on arrival: nothing was done for the request."""

    reason: str


class QueueFull(Rejected):
    """Raise when taking the request would overfill the queue; says when room is expected."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineTooShort(Rejected):
    """Raise when the work already waiting would outlast the request's deadline."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "deadline_too_short"


class Unauthenticated(Rejected):
    """Raise when a caller doesn't show a token that is good now.

    Args:
        reason: Why not, for the metrics. Callers are all told the same: nobody shall learn how near a guess was.
    """

    code = grpc.StatusCode.UNAUTHENTICATED

    def __init__(self, reason: str) -> None:
        super().__init__("a valid bearer token is needed")
        self.reason = reason


class PermissionDenied(Rejected):
    """Raise when a caller's token is good, but not for this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "token_scope"


class Draining(Rejected):
    """Raise when the server is on its way out and takes nothing new."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "draining"


class NotReady(Rejected):
    """Raise when the default model has not been loaded yet."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "not_ready"


class DeadlineExpired(ServerError):
    """Raise when the deadline of a waiting request has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class InternalError(ServerError):
    """Not to be raised: stands for a fault of ours, whose stack is in the log under the id that the caller gets."""

    code = grpc.StatusCode.INTERNAL


def public(error: Exception, request: object = None) -> ServerError:
    """Return what a caller may see of an error; one that is not meant for callers is logged under an id.

    Args:
        error: What went wrong.
        request: With what; the log names its `request_id`.
    """
    if isinstance(error, ServerError):
        return error.with_traceback(None)  # the frames in it hold the request, and it: a cycle of megabytes
    fault_id = uuid.uuid4().hex[:12]
    log.error("internal error", exc_info=error, extra={"fault_id": fault_id, **request_id(request)})
    error.__traceback__ = None
    return InternalError(f"internal error; the server's log tells more under {fault_id}")


def request_id(request: object) -> dict[str, str]:
    """Return the id that a request bears, for the log: any text of its caller's, perhaps not checked yet, so cut."""
    found = getattr(request, "request_id", "") or getattr(request, "id", "")
    return {"request_id": found[:MAX_REQUEST_ID]} if found else {}


class ModelRefused(Exception):
    """Raise when a model package can't be trusted; the message says what is wrong. Callers never see it."""
