"""A log line for an RPC, for some of them: who asked for what, how it ended, how long it took."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Any

import grpc

from digits_server.errors import request_id
from digits_server.rpc.interceptor import Ended, Observer

if TYPE_CHECKING:
    from digits_server.rpc.interceptor import Context

log = logging.getLogger(__name__)

MAX_TEXT = 128
"""Characters of a caller's text in a line."""


def access_log(sample: float, inner: Observer | None) -> Observer:
    """Return an observer that logs RPCs.

    Args:
        sample: Share of the RPCs to log, drawn anew for each.
        inner: Another observer, told of every RPC.
    """

    def begun(method: str, request: Any, context: Context) -> Ended:
        ended = inner(method, request, context) if inner else _untraced
        if random.random() >= sample:  # noqa: S311 - decides about a log line
            return ended
        start = time.perf_counter()

        def log_and_end(code: grpc.StatusCode) -> bytes:
            fields = {
                "method": method,
                "code": code.name,
                "duration_s": round(time.perf_counter() - start, 6),
                "peer": context.peer(),
                "model": str(getattr(request, "model", "") or getattr(request, "model_name", ""))[:MAX_TEXT],
                **request_id(request),
            }
            log.info("rpc", extra=fields)  # before the span ends: the line then bears its id
            return ended(code)

        return log_and_end

    return begun


def _untraced(_code: grpc.StatusCode) -> bytes:
    return b""
