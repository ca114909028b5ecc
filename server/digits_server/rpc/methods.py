"""The RPCs of one method, from arrival to outcome: as tasks, or as function calls where the transport can do that."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from digits_server.errors import Draining, ServerError
from digits_server.metrics.definitions import RpcCounter
from digits_server.rpc.transports import Arrival, Carrier, Metadata

if TYPE_CHECKING:
    from digits_server.rpc.interceptor import Context, Intercepted

TOGETHER = 4
"""RPCs that must have come together to be answered together; with fewer, one by one costs no more."""


class Method:
    """A handler, wrapped, in both the forms that transports call.

    Args:
        rpcs: Counts the RPCs in flight.
        behaviour: The handler. One that can be called directly returns, instead of a coroutine, an awaitable with
            `then` and `leave`, as `servicers.Answering`. Its attribute `together`, if any, is a method that takes the
            bytes of several messages and their earliest deadline, and begins to answer all of them, or raises.
        deserialize: Reads its message.
        guard: Refuses calls by their metadata.
        count: Counts and times its RPCs.
    """

    def __init__(
        self,
        rpcs: Intercepted,
        behaviour: Any,
        deserialize: Callable[[bytes], Any],
        guard: Callable[[Iterable[tuple[str, str | bytes]]], None] | None,
        count: RpcCounter,
    ) -> None:
        self.rpcs = rpcs
        self.behaviour = behaviour
        self.deserialize = deserialize
        self._guard = guard
        self._count = count
        together = getattr(behaviour, "together", None)
        self._together = together and partial(together, behaviour.__self__)

    async def call(self, request: Any, context: Context, done: RpcCounter | None = None) -> Any:
        """Answer as a task; `done` counts instead of what counts otherwise."""
        start = time.monotonic()
        self.rpcs.begin()
        try:
            self.check(request, context)
            response = await self.behaviour(request, context)
        except Exception as error:
            if _has_left(error):
                self.end(grpc.StatusCode.CANCELLED, start, done)
                raise asyncio.CancelledError from error
            answer, metadata = self.rpcs.refuse(error, request)
            self.end(answer.code, start, done)  # before the caller can know
            await _abort(context, answer, metadata)
        except BaseException:
            self.end(grpc.StatusCode.CANCELLED, start, done)
            raise
        else:
            self.end(grpc.StatusCode.OK, start, done)
            return response

    def begin(self, carrier: Carrier, arrivals: Sequence[Arrival], start: float) -> None:
        """Begin to answer RPCs that came together at `start`, by function calls; a `transport.DirectMethod`."""
        if len(arrivals) >= TOGETHER and self._together and not self._guard and not self.rpcs.is_draining:
            messages, left_s = [arrival[1] for arrival in arrivals], [arrival[3] for arrival in arrivals]
            deadline = start + min((seconds for seconds in left_s if seconds is not None), default=float("inf"))
            with contextlib.suppress(Exception):  # whatever it is, only some of them may be concerned
                Together(self, carrier, arrivals, start, self._together(messages, deadline))
                return
        for call_id, data, metadata, remaining in arrivals:
            Direct(self, carrier, call_id, metadata, start, remaining).begin(data)

    def check(self, request: Any, context: Context | Direct) -> None:
        """Refuse what the guard refuses, what comes while the server drains, and what can't be read."""
        if self._guard:
            self._guard(context.invocation_metadata() or ())
        if self.rpcs.is_draining:
            raise Draining("the server is shutting down")
        if isinstance(request, ServerError):
            raise request

    def end(self, code: grpc.StatusCode, start: float, done: RpcCounter | None = None, times: int = 1) -> None:
        """Count RPCs out that began at `start`, on the monotonic clock."""
        self.rpcs.end(times)
        (done or self._count)(code, time.monotonic() - start, times)


class Direct:
    """One RPC that is answered by function calls; to its handler, as much of a `ServicerContext` as that may use.

    Args:
        method: What is called.
        carrier: Where the answer goes.
        call_id: The RPC's, there.
        metadata: That came with it.
        start: When it came, on the monotonic clock.
        remaining: Seconds from then until the caller stops listening, if it ever does.
    """

    __slots__ = (
        *("_answering", "_carrier", "_deadline", "_id", "_metadata"),
        *("_method", "_request", "_start", "_trailers"),
    )

    def __init__(
        self, method: Method, carrier: Carrier, call_id: int, metadata: Metadata, start: float, remaining: float | None
    ) -> None:
        self._method, self._carrier, self._id = method, carrier, call_id
        self._metadata = metadata
        self._start = start
        self._deadline = None if remaining is None else start + remaining
        self._trailers: Metadata = ()
        self._request: Any = None
        self._answering: Any = None

    def invocation_metadata(self) -> Metadata:
        """Return the metadata that came with the call."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller stops listening; None if it never does."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def set_trailing_metadata(self, trailers: Metadata) -> None:
        """Have these go out with the answer."""
        self._trailers = trailers

    def begin(self, data: bytes) -> None:
        """Take the message, and answer it now or later."""
        method = self._method
        method.rpcs.begin()
        self._carrier.calls[self._id] = self
        try:
            self._request = request = method.deserialize(data)
            method.check(request, self)
            self._answering = method.behaviour(request, self)
            self._answering.then(self._reply)
        except Exception as error:  # noqa: BLE001 - the border: nothing leaves unmapped
            self._reply(error)

    def leave(self, _call_id: int) -> None:
        """Give up: the caller has left."""
        self._answering.leave()
        self._answering = None
        self._method.end(grpc.StatusCode.CANCELLED, self._start)

    def _reply(self, result: bytes | Exception) -> None:
        self._answering = None  # it refers to this call: a cycle, which only the collector would free
        if isinstance(result, bytes):
            self._method.end(grpc.StatusCode.OK, self._start)
            self._carrier.respond(self._id, result, self._trailers)
        else:
            answer, trailers = self._method.rpcs.refuse(result, self._request)
            self._method.end(answer.code, self._start)
            self._carrier.fail(self._id, answer.code, answer.message, trailers)


class Together:
    """RPCs that came together and are answered as one request, as long as nothing goes wrong.

    If something does, each is begun again as a call of its own: then only those have to suffer that must.

    Args:
        method: What is called.
        carrier: Where the answers go.
        arrivals: The RPCs.
        start: When they came, on the monotonic clock.
        answering: What answers them, with a list of messages.
    """

    __slots__ = ("_answering", "_carrier", "_ids", "_method", "_start", "_waiting")

    def __init__(
        self, method: Method, carrier: Carrier, arrivals: Sequence[Arrival], start: float, answering: Any
    ) -> None:
        self._method, self._carrier, self._start, self._answering = method, carrier, start, answering
        self._ids = [arrival[0] for arrival in arrivals]
        self._waiting = dict(zip(self._ids, arrivals, strict=True))
        method.rpcs.begin(len(arrivals))
        carrier.calls.update(dict.fromkeys(self._ids, self))
        answering.then(self._reply)

    def leave(self, call_id: int) -> None:
        """Give one up: its caller has left."""
        del self._waiting[call_id]
        self._method.end(grpc.StatusCode.CANCELLED, self._start)
        if self._answering:
            self._answering.gone += 1
            if not self._waiting:
                self._answering.leave()

    def _reply(self, result: list[bytes] | Exception) -> None:
        self._answering = None  # as in `Direct`
        if isinstance(result, Exception):
            asyncio.get_running_loop().call_soon(self._begin_again)  # not amid the batcher's work
            return
        waiting, self._waiting = self._waiting, {}
        self._method.end(grpc.StatusCode.OK, self._start, times=len(waiting))
        for call_id, answer in zip(self._ids, result, strict=True):
            if call_id in waiting:
                self._carrier.respond(call_id, answer, ())

    def _begin_again(self) -> None:
        self._method.rpcs.end(len(self._waiting))
        for call_id, data, metadata, remaining in self._waiting.values():
            Direct(self._method, self._carrier, call_id, metadata, self._start, remaining).begin(data)


async def _abort(context: Context, answer: ServerError, metadata: Metadata) -> None:
    """End an RPC with a status alone: clients retry no RPC that has sent them a message, were it empty.

    grpc keeps what `abort` raises and raises it again itself. Not let go of its frames, it would keep the request.
    """
    try:
        await context.abort(answer.code, answer.message, metadata)
    except Exception as aborted:  # noqa: BLE001 - each transport has its own
        aborted.__traceback__ = aborted.__context__ = None


def _has_left(error: Exception) -> bool:
    """Return whether an error, or one in a group, is grpcio's about an answer that nobody is there to take."""
    return ExceptionGroup("", [error]).subgroup(grpc.aio.InternalError) is not None
