"""What can go wrong, and the one border where grpc's errors become ours.

DigitsError
├── InvalidImage            this can't be read as an image; never sent
├── ClientClosed            the client was closed, or belongs to another process or event loop
└── CallError               the call failed: .code, .details, .retryable
    ├── InvalidRequest      the server refuses what was sent
    ├── NotFound            no such model or version
    ├── NotAuthenticated    no token, or a wrong one
    ├── PermissionDenied    a token that may not do this
    ├── Overloaded          the server's queue is full, or the request is too large
    ├── DeadlineExceeded    no answer in time
    ├── ServerUnavailable   the server can't be reached, or is going away
    ├── Cancelled           the call was cancelled on this side
    ├── Unsupported         the server does not know this call
    └── ServerFault         the server's own fault
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import grpc


class DigitsError(Exception):
    """Base of all errors that this package raises. They can be pickled, so they cross process pools."""


class InvalidImage(DigitsError, ValueError):
    """What was given can't be read as an image, or as images."""


class ClientClosed(DigitsError, RuntimeError):
    """The client was closed, or belongs to the process before a fork, or to another event loop."""


class CallError(DigitsError):
    """A call failed.

    Args:
        code: The gRPC status code.
        details: What the server, or grpc, says about it.
    """

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed a little later."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)  # `args` are the constructor's: that is what pickle and copy go by
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}"


class InvalidRequest(CallError):
    """The server refuses what was sent; `details` names the field, the value and what is allowed."""


class NotFound(CallError):
    """The server has no such model or version."""


class NotAuthenticated(CallError):
    """The server wants a token, or another one."""


class PermissionDenied(CallError):
    """The token is known and may not do this."""


class Overloaded(CallError):
    """The server's queue is full, or the request is too large."""

    retryable = True


class DeadlineExceeded(CallError):
    """There was no answer within the timeout."""

    retryable = True


class ServerUnavailable(CallError):
    """The server can't be reached, or is going away."""

    retryable = True


class Cancelled(CallError):
    """The call was cancelled on this side."""


class Unsupported(CallError):
    """The server does not know this call: it is older than this client, or something else."""


class ServerFault(CallError):
    """The server failed on its own; its log tells more."""


_BY_CODE: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.DATA_LOSS: ServerFault,
}


class Border:
    """Raises our error `from` grpc's, around calls on a client's channels; one object for all of them.

    Args:
        hint: Follows the details where the server can't be reached.
    """

    def __init__(self, hint: str) -> None:
        self.hint = hint
        self.is_closed = False

    def __enter__(self) -> None:
        """Let nothing of grpc's through."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Map what was raised."""
        if isinstance(error, grpc.RpcError):
            raise from_rpc_error(error, self.hint) from error
        if isinstance(error, grpc.FutureCancelledError):
            raise Cancelled(grpc.StatusCode.CANCELLED, "the call was cancelled") from error
        if self.is_closed and isinstance(error, ValueError | grpc.aio.UsageError):  # of channels just closed
            raise ClientClosed("the client is closed") from error
        if self.is_closed and isinstance(error, asyncio.CancelledError):  # so grpc.aio ends calls on a closed channel
            raise Cancelled(grpc.StatusCode.CANCELLED, "the client was closed") from error


def from_rpc_error(error: grpc.RpcError, hint: str = "") -> CallError:
    """Return our error for one of grpc's."""
    code = error.code() or grpc.StatusCode.UNKNOWN
    details = error.details() or "no details given"
    if hint and code is grpc.StatusCode.UNAVAILABLE:
        details += f" ({hint})"
    return _BY_CODE.get(code, CallError)(code, details)


def from_status(number: int, details: str) -> CallError:
    """Return our error for a status inside a message."""
    code = next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)
    return _BY_CODE.get(code, CallError)(code, details)


def again(error: Exception) -> Exception:
    """Return an equal error with the same cause: callers who share one each raise their own, with its own traceback."""
    if not isinstance(error, CallError):
        return error
    copy = type(error)(error.code, error.details)
    copy.__cause__ = error.__cause__
    return copy
