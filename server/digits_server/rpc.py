"""The RPCs of one method, from arrival to outcome: as tasks, or as function calls where the transport can do that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from digits_server.errors import Draining, ServerError
from digits_server.metrics import RpcCounter
from digits_server.tokens import Metadata
from digits_server.transport import DirectCall

if TYPE_CHECKING:
    from digits_server.interceptors import Context, Intercepted, Trailers


class Method:
    """A handler, wrapped, in both the forms that transports call.

    Args:
        rpcs: Counts the RPCs in flight.
        behaviour: The handler. One that can be called directly returns, instead of a coroutine, an awaitable with
            `then` and `leave`, as `servicers.Answering`.
        deserialize: Reads its message.
        guard: Refuses calls by their metadata.
        count: Counts and times its RPCs.
    """

    def __init__(
        self,
        rpcs: Intercepted,
        behaviour: Any,
        deserialize: Callable[[bytes], Any],
        guard: Callable[[Metadata], None] | None,
        count: RpcCounter,
    ) -> None:
        self._rpcs = rpcs
        self._behaviour = behaviour
        self._deserialize = deserialize
        self._guard = guard
        self._count = count

    async def call(self, request: Any, context: Context, done: RpcCounter | None = None) -> Any:
        """Answer as a task; `done` counts instead of what counts otherwise."""
        start = self.begin()
        try:
            self._check(request, context)
            response = await self._behaviour(request, context)
        except Exception as error:
            if _has_left(error):
                self.end(grpc.StatusCode.CANCELLED, start, done)
                raise asyncio.CancelledError from error
            answer, metadata = self._rpcs.refuse(error, request)
            self.end(answer.code, start, done)  # before the caller can know
            await _abort(context, answer, metadata)
        except BaseException:
            self.end(grpc.StatusCode.CANCELLED, start, done)
            raise
        else:
            self.end(grpc.StatusCode.OK, start, done)
            return response

    def call_directly(self, data: bytes, context: DirectCall) -> None:
        """Answer by function calls."""
        rpc = _Direct(self, context)
        try:
            rpc.request = self._deserialize(data)
            self._check(rpc.request, context)
            rpc.answering = self._behaviour(rpc.request, context)
            rpc.answering.then(rpc.reply)
            context.leave = rpc.leave
        except Exception as error:  # noqa: BLE001 - the border: nothing leaves unmapped
            rpc.reply(error)

    def _check(self, request: Any, context: Context | DirectCall) -> None:
        if self._guard:
            self._guard(context.invocation_metadata() or ())
        if self._rpcs.is_draining:
            raise Draining("the server is shutting down")
        if isinstance(request, ServerError):
            raise request

    def begin(self) -> float:
        """Count an RPC in, and return when it began."""
        self._rpcs.begin()
        return time.perf_counter()

    def end(self, code: grpc.StatusCode, start: float, done: RpcCounter | None = None) -> None:
        """Count an RPC out."""
        self._rpcs.end()
        (done or self._count)(code, time.perf_counter() - start)

    def refuse(self, error: Exception, request: Any) -> tuple[ServerError, Trailers]:
        """As `Intercepted.refuse`."""
        return self._rpcs.refuse(error, request)


class _Direct:
    """One RPC that is answered by function calls."""

    __slots__ = ("_context", "_method", "_start", "answering", "request")

    def __init__(self, method: Method, context: DirectCall) -> None:
        self._method, self._context = method, context
        self._start = method.begin()
        self.request: Any = None
        self.answering: Any = None

    def reply(self, result: bytes | Exception) -> None:
        """Send the answer, or the error."""
        if isinstance(result, bytes):
            self._method.end(grpc.StatusCode.OK, self._start)
            self._context.respond(result)
        else:
            answer, metadata = self._method.refuse(result, self.request)
            self._method.end(answer.code, self._start)
            self._context.fail(answer.code, answer.message, metadata)

    def leave(self) -> None:
        """Give up: the caller has left."""
        self.answering.leave()
        self._method.end(grpc.StatusCode.CANCELLED, self._start)


async def _abort(context: Context, answer: ServerError, metadata: Trailers) -> None:
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
