"""What a handler reads from the call around a message, and tells of its answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc

from digits_server.inference.request import Outcome
from digits_server.models.package import Package
from digits_server.rpc.status import named

if TYPE_CHECKING:  # generic only in the stubs
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
    Answer = Callable[[Any, Any], Awaitable[Any]]

served: ContextVar[Outcome[Any] | None] = ContextVar("served", default=None)
"""What became of the current RPC's rows, for its span."""


def deadline(context: Context) -> float:
    """Return when the RPC's caller stops listening, on the monotonic clock; infinity if it never does."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining


def tell(context: Context, request: object, package: Package, outcome: Outcome[Any]) -> None:
    """Tell the RPC's span of its answer, and its trailers too if the request has a name."""
    served.set(outcome)
    if trailers := named(request):
        context.set_trailing_metadata(
            (
                *trailers,
                ("digits-model", package.name),
                ("digits-version", package.version),
                ("digits-queue-s", f"{outcome.queue_s:.6f}"),
                ("digits-inference-s", f"{outcome.inference_s:.6f}"),
                ("digits-batch-size", str(outcome.batch_size)),
            )
        )
