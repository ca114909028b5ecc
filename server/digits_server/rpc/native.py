"""pygrpc-native's asyncio server, with methods that are served by function calls instead of a task for each call."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc
import pygrpc_native.aio
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

if TYPE_CHECKING:
    from digits_server.rpc.transports import Arrival, DirectCall, DirectMethod, Metadata


class Server(pygrpc_native.aio.Server):
    """As its base, which offers no other way to answer without a task: `_on_events` is given each batch of calls.

    Args:
        options: As grpcio's.
        io_threads: Threads that do the HTTP/2 work.
    """

    def __init__(self, options: Iterable[tuple[str, Any]], io_threads: int) -> None:
        super().__init__(options=options, io_threads=io_threads)
        self._direct: dict[str, DirectMethod] = {}  # by path
        self._by_number: dict[int, DirectMethod] = {}
        self.calls: dict[int, DirectCall] = {}
        """Direct calls without an answer, by id."""

    @property
    def front(self) -> NativeGrpcFront:
        """What carries the calls."""
        if self._front is None:
            raise RuntimeError("there is no port yet")
        return self._front

    def add_direct(self, path: str, method: DirectMethod) -> None:
        """Serve a unary method, whose handler has been or will be added, by calls that `method` makes."""
        self._direct[path] = method

    def respond(self, call_id: int, data: bytes, trailers: Metadata) -> None:
        """Answer a direct call with a message, and status OK."""
        self.calls.pop(call_id, None)
        self.front.respond(call_id, data, None, trailers)

    def fail(self, call_id: int, code: grpc.StatusCode, message: str, trailers: Metadata = ()) -> None:
        """Answer a direct call with a status."""
        self.calls.pop(call_id, None)
        self.front.fail(call_id, code.value[0], message, trailers)

    async def start(self) -> None:
        """Begin to answer."""
        await super().start()
        numbered = enumerate(path for path, _ in self._table)
        self._by_number = {number: self._direct[path] for number, path in numbered if path in self._direct}

    async def stop(self, grace: float | None) -> None:
        """As the base; direct calls are not given the grace."""
        for call_id, call in list(self.calls.items()):
            call.leave(call_id)
            self.fail(call_id, grpc.StatusCode.UNAVAILABLE, "the server shut down before the request was answered")
        await super().stop(grace)

    def _on_events(self, events: list[tuple[Any, ...]]) -> None:
        """Take calls, and news of callers who have left or whose deadline has passed, as they come from the front."""
        now, limit = time.monotonic(), self._receive_limit
        arrived: dict[int, list[Arrival]] = {number: [] for number in self._by_number}
        others = []
        for event in events:
            kind, call_id, number, data, _, details = event
            if kind == EVENT_CANCEL or number not in arrived or self._stopping:
                others.append(event)
            elif limit is not None and len(data) > limit:
                text = f"SERVER: Received message larger than max ({len(data)} vs. {limit})"
                self.fail(call_id, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            else:
                arrived[number].append((call_id, data, details[0], details[2]))
        for number, arrivals in arrived.items():
            if arrivals:
                self._by_number[number](self, arrivals, now)
        for call_id in [call_id for kind, call_id, *_ in others if kind == EVENT_CANCEL]:
            if gone := self.calls.pop(call_id, None):
                gone.leave(call_id)
        if others:
            super()._on_events(others)
