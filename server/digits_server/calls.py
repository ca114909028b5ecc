"""What a handler must know of the call around a message."""

from __future__ import annotations

import time
from typing import Any

import grpc

NO_DEADLINE_S = 1e8


def deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Return when the RPC's caller stops listening, on the monotonic clock; infinity if it never does."""
    remaining = context.time_remaining()  # without a deadline: None, or on some transports a number of centuries
    return float("inf") if remaining is None or remaining > NO_DEADLINE_S else time.monotonic() + remaining
