"""Coalesces concurrent calls of one event loop into shared requests."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from digits_client._errors import Cancelled, DeadlineExceeded, InvalidRequest, again
from digits_client._results import Prediction

MAX_BATCH = 256
"""Most images of different callers in one request: one more would save next to nothing, and share one more's fate."""
MAX_DELAY_S = 0.1
"""How long calls wait for those in flight, at most: one server that hangs must not hold up calls to the others."""


@dataclass(slots=True, eq=False)
class Call:
    """One image whose caller waits for the result."""

    data: bytes
    deadline: float
    """By the event loop's clock."""
    result: asyncio.Future[Prediction]
    batch: Sequence[Call] = ()
    """Those that share its request, itself among them."""
    task: asyncio.Task[None] | None = None
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """Where a tracing interceptor finds the caller's span."""

    def fail(self, error: Exception) -> None:
        """Give up, unless that has happened."""
        if not self.result.done():
            self.result.set_exception(error)

    def expire(self) -> None:
        """Give up because the caller's own time is up."""
        self.fail(DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within the call's timeout"))

    def leave(self) -> None:
        """Cancel the request if the caller who has left was the last who cared."""
        if self.task and all(call.result.done() for call in self.batch):
            self.task.cancel()


class Coalescer:
    """Sends single images to the server, those of concurrent callers together.

    While fewer than `max_in_flight` requests are in flight, whoever waits is sent at once, alone or not; otherwise all
    wait, and those who wait are sent together. So a lone call is never delayed, and batches form under load.

    Args:
        ask: Sends encoded images in one request, with a timeout in seconds, and returns the results. It runs in the
            context of the first of the callers.
        max_in_flight: Requests that may be in flight at once.
    """

    def __init__(
        self,
        ask: Callable[[list[bytes], float], Awaitable[Sequence[Prediction]]],
        max_in_flight: int,
    ) -> None:
        self._ask, self._max_in_flight = ask, max_in_flight
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Call] = deque()
        self._max_delay: asyncio.TimerHandle | None = None
        self._in_flight: set[asyncio.Task[None]] = set()

    async def classify(self, data: bytes, deadline: float) -> Prediction:
        """Return what one encoded image shows, by `deadline` of the event loop's clock."""
        if not self._waiting:  # send once everybody has called who can in this turn of the loop
            self._loop.call_soon(self._flush)
        call = Call(data, deadline, self._loop.create_future())
        self._waiting.append(call)
        timer = self._loop.call_at(deadline, call.expire)
        try:
            return await call.result
        except (asyncio.CancelledError, DeadlineExceeded):
            call.leave()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Give up all calls that wait."""
        while self._waiting:
            self._waiting.popleft().fail(Cancelled(grpc.StatusCode.CANCELLED, "the client was closed"))

    def _flush(self, *, is_forced: bool = False) -> None:
        """Send what may be sent; if forced, one request more."""
        while self._waiting and (is_forced or len(self._in_flight) < self._max_in_flight):
            is_forced = False
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
            task = self._loop.create_task(self._send(batch), context=batch[0].context)
            for call in batch:
                call.batch, call.task = batch, task
            self._in_flight.add(task)
            task.add_done_callback(self._on_done)
        if self._waiting and self._max_delay is None:
            self._max_delay = self._loop.call_later(MAX_DELAY_S, self._on_max_delay)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._flush()

    def _on_max_delay(self) -> None:
        self._max_delay = None
        self._flush(is_forced=True)

    async def _send(self, batch: list[Call]) -> None:
        batch = [call for call in batch if not call.result.done()]
        if not batch:  # they have left in the meantime
            return
        latest = max(call.deadline for call in batch)  # each caller's own deadline has its own timer
        try:
            results = await self._ask([call.data for call in batch], latest - self._loop.time())
        except InvalidRequest as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
            middle = len(batch) // 2  # only the guilty may fail; who it is, halving tells
            await self._send(batch[:middle])
            await self._send(batch[middle:])
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting
            for call in batch:
                call.fail(again(error))
        else:
            for call, prediction in zip(batch, results, strict=True):
                if not call.result.done():
                    call.result.set_result(prediction)
