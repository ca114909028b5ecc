"""What a handler reads from the call around a message, and tells in its trailers."""

from __future__ import annotations

import time
from typing import Any

import grpc

from digits_server.errors import MAX_REQUEST_ID
from digits_server.inference.request import Outcome
from digits_server.models.package import Package

NO_DEADLINE_S = 1e8

Trailers = tuple[tuple[str, str], ...]


def deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Return when the RPC's caller stops listening, on the monotonic clock; infinity if it never does."""
    remaining = context.time_remaining()  # without a deadline: None, or on some transports a number of centuries
    return float("inf") if remaining is None or remaining > NO_DEADLINE_S else time.monotonic() + remaining


def is_id(text: str) -> bool:
    """Return whether a caller's name for a request passes unchanged through headers and logs."""
    return len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable()


def named(request: object) -> Trailers:
    """Return the trailer that gives a request's name back; none for a request without one."""
    name = getattr(request, "request_id", "") or getattr(request, "id", "")
    return (("x-request-id", name),) if name and is_id(name) else ()


def trailers(request: object, package: Package, outcome: Outcome[Any]) -> Trailers:
    """Return what the trailers tell, to those who don't read messages, of the answer to a request with a name."""
    return (
        *named(request),
        ("digits-model", package.name),
        ("digits-version", package.version),
        ("digits-queue-s", f"{outcome.queue_s:.6f}"),
        ("digits-inference-s", f"{outcome.inference_s:.6f}"),
        ("digits-batch-size", str(outcome.batch_size)),
    )
