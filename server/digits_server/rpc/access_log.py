"""A log line for an RPC, for some of them: who asked for what, how it ended, how long it took."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import grpc

from digits_server.errors import request_id

if TYPE_CHECKING:
    from digits_server.rpc.context import Context

log = logging.getLogger(__name__)

MAX_TEXT = 128
"""Characters of a caller's text in a line."""


def is_chosen(share: float) -> bool:
    """Return whether an RPC gets a line, drawn anew for each."""
    return share > 0 and random.random() < share  # noqa: S311 - decides about a log line


def write(method: str, code: grpc.StatusCode, elapsed_s: float, request: object, context: Context) -> None:
    """Write the line of an RPC, before its span ends: the line then bears its id."""
    fields = {
        "method": method,
        "code": code.name,
        "duration_s": round(elapsed_s, 6),
        "peer": context.peer(),
        "model": str(getattr(request, "model", "") or getattr(request, "model_name", ""))[:MAX_TEXT],
        **request_id(request),
    }
    log.info("rpc", extra=fields)
