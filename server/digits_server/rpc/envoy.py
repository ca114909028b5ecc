"""gRPC over ASGI: what a server does between HTTP/2, which Envoy speaks, and the handlers that grpcio calls as well.

Framing, statuses and metadata as https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md says. Knows nothing of
processes and sockets; those are in envoy_process.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import grpc

from digits_server.rpc.call import Call, Event, Receive, Send

if TYPE_CHECKING:
    from digits_server.rpc.interceptor import Interceptor

LOOK_S = 0.05
"""Time between looks at calls that last: whether their callers are still there, and their deadlines to come."""
LOOKS = 256
"""Calls looked at in one turn."""


class Server:
    """An ASGI application that answers gRPC calls.

    Args:
        interceptor: Holds the handlers.
    """

    def __init__(self, interceptor: Interceptor) -> None:
        self._interceptor = interceptor
        self._calls: OrderedDict[Call, None] = OrderedDict()  # those in flight, the next to be looked at first

    def start(self) -> None:
        """Begin to look after calls."""
        asyncio.get_running_loop().call_later(LOOK_S, self._look)

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer a call."""
        call = Call(scope, receive, send)
        handler = self._interceptor.handler(scope["path"])
        if not (scope["method"] == "POST" and call.is_grpc):
            await send({"type": "http.response.start", "status": 415, "headers": []})
            await send({"type": "http.response.body"})
            return
        self._calls[call] = None
        try:
            await (call.answer(handler) if handler else call.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
        except asyncio.CancelledError:
            if call.cause:  # it was us; else the caller has left, or the process is ending
                await call.end(*call.cause)
        except ConnectionError:
            pass  # the caller has left
        finally:
            del self._calls[call]

    def _look(self) -> None:
        """Look after calls that last: the oldest first, then in turns."""
        asyncio.get_running_loop().call_later(LOOK_S, self._look)
        now = time.monotonic()
        for _ in range(min(LOOKS, len(self._calls))):
            call = next(iter(self._calls))
            if now - call.began < LOOK_S:
                return  # those behind it are younger, or were looked at just now
            self._calls.move_to_end(call)
            call.look(now)
