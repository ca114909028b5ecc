"""pygrpc-native's asyncio server, with methods that are served by function calls instead of a task for each call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import pygrpc_native.aio
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

if TYPE_CHECKING:
    Metadata = tuple[tuple[str, str | bytes], ...]
    Direct = Callable[[bytes, "Call"], None]


class Call:
    """One call of a direct method, and as much of a `ServicerContext` as such a method may use."""

    __slots__ = ("_deadline", "_details", "_id", "_server", "_trailers", "leave")

    def __init__(self, server: Server, call_id: int, details: tuple[Metadata, str, float | None], now: float) -> None:
        self._server, self._id, self._details = server, call_id, details
        remaining = details[2]
        self._deadline = None if remaining is None else now + remaining
        self._trailers: Sequence[tuple[str, str | bytes]] = ()
        self.leave: Callable[[], None] = _nothing

    def invocation_metadata(self) -> Metadata:
        """Return the metadata that came with the call."""
        return self._details[0]

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller stops listening; None if it never does."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def set_trailing_metadata(self, trailers: Sequence[tuple[str, str | bytes]]) -> None:
        """Have these go out with the answer."""
        self._trailers = trailers

    def respond(self, data: bytes) -> None:
        """Answer with a message, and status OK."""
        self._over().respond(self._id, data, None, list(self._trailers))

    def fail(self, code: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]] = ()) -> None:
        """Answer with a status."""
        self._over().fail(self._id, code.value[0], message, list(trailers))

    def _over(self) -> NativeGrpcFront:
        self.leave = _nothing  # it refers to this call: a cycle, which only the collector would free
        self._server.direct_calls.pop(self._id, None)
        return self._server.front


class Server(pygrpc_native.aio.Server):
    """As its base, which offers no other way to answer without a task: `_on_events` is given each batch of calls.

    Args:
        options: As grpcio's.
        io_threads: Threads that do the HTTP/2 work.
    """

    def __init__(self, options: Iterable[tuple[str, Any]], io_threads: int) -> None:
        super().__init__(options=options, io_threads=io_threads)
        self._direct: dict[str, Direct] = {}  # by path
        self._by_number: dict[int, Direct] = {}
        self.direct_calls: dict[int, Call] = {}
        """Calls of direct methods that have no answer yet, by id."""

    @property
    def front(self) -> NativeGrpcFront:
        """What carries the calls."""
        if self._front is None:
            raise RuntimeError("there is no port yet")
        return self._front

    def add_direct(self, path: str, method: Direct) -> None:
        """Serve a unary method, whose handler has been or will be added, by calls of `method`; it must not raise."""
        self._direct[path] = method

    async def start(self) -> None:
        """Begin to answer."""
        await super().start()
        numbered = enumerate(path for path, _ in self._table)
        self._by_number = {number: self._direct[path] for number, path in numbered if path in self._direct}

    async def stop(self, grace: float | None) -> None:
        """As the base; direct calls are not given the grace."""
        for call in list(self.direct_calls.values()):
            call.leave()
            call.fail(grpc.StatusCode.UNAVAILABLE, "the server shut down before the request was answered")
        await super().stop(grace)

    def _on_events(self, events: list[tuple[Any, ...]]) -> None:
        """Take calls, and news of callers who have left or whose deadline has passed, as they come from the front."""
        now, others = time.monotonic(), []
        for event in events:
            kind, call_id, number, data, _, details = event
            if kind == EVENT_CANCEL and (gone := self.direct_calls.pop(call_id, None)):
                gone.leave()
            elif kind == EVENT_CANCEL or number not in self._by_number or self._stopping:
                others.append(event)
            else:
                call = self.direct_calls[call_id] = Call(self, call_id, details, now)
                if self._receive_limit is not None and len(data) > self._receive_limit:
                    sizes = f"({len(data)} vs. {self._receive_limit})"
                    call.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, f"SERVER: Received message larger than max {sizes}")
                else:
                    self._by_number[number](data, call)
        if others:
            super()._on_events(others)


def _nothing() -> None: ...
