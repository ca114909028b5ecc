"""Lets concurrent calls of one event loop travel as one."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import grpc

from digits_client import _messages, _wire
from digits_client._errors import Cancelled, DeadlineExceeded, InvalidRequest, again
from digits_client._messages import Prediction

MERGED_IMAGES = 256
"""Most images of different callers in one call: one more would save next to nothing, and share one more's fate."""
PATIENCE_S = 0.1
"""How long calls wait for those under way, at most: one server that hangs must not hold up calls to the others."""


class Call:
    """One image whose caller waits for the answer."""

    __slots__ = ("answer", "companions", "context", "data", "deadline", "is_float", "task")

    def __init__(self, data: bytes, deadline: float, answer: asyncio.Future[Prediction], *, is_float: bool) -> None:
        self.data, self.is_float = data, is_float
        self.deadline = deadline  # by the event loop's clock
        self.answer = answer
        self.context = contextvars.copy_context()
        self.companions: list[Call] = []  # those that travel together, itself among them
        self.task: asyncio.Task[None] | None = None

    def is_over(self) -> bool:
        """Return whether nobody wants the answer any more."""
        return self.answer.done()

    def fail(self, error: Exception) -> None:
        """Give up, unless that has happened."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def expire(self) -> None:
        """Give up because the caller's own time is up."""
        self.fail(DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within the call's timeout"))

    def leave(self) -> None:
        """End the journey if the caller who has left was the last who cared."""
        if self.task and all(call.is_over() for call in self.companions):
            self.task.cancel()


class Merging:
    """Carries single images to the server, those of concurrent callers together.

    While fewer than `lanes` groups are on their way, whoever waits goes at once, alone or not; otherwise all wait, and
    those who wait go together. So nobody waits for company, and company comes by itself when there is much to do.

    Args:
        ask: Sends the bytes of a `ClassifyRequest`, with a timeout in seconds, and returns the answer's bytes.
        options: What `wire.options` returned.
        lanes: Groups that may be on their way at once.
        context: Returns the context in which those travel who called in the given ones; the first one's unless given.
    """

    def __init__(
        self,
        ask: Callable[[bytes, float], Awaitable[bytes]],
        options: bytes,
        lanes: int,
        context: Callable[[Sequence[contextvars.Context]], contextvars.Context] | None = None,
    ) -> None:
        self._ask, self._options, self._lanes, self._context = ask, options, lanes, context
        self._loop = asyncio.get_running_loop()
        self._waiting: tuple[deque[Call], deque[Call]] = (
            deque(),
            deque(),
        )  # bytes and floats: a request holds one kind
        self._turn = 0
        self._is_departing = False
        self._patience: asyncio.TimerHandle | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def classify(self, data: bytes, deadline: float, *, is_float: bool) -> Prediction:
        """Return what one encoded image shows, by `deadline` of the event loop's clock."""
        call = Call(data, deadline, self._loop.create_future(), is_float=is_float)
        self._waiting[is_float].append(call)
        if not self._is_departing:  # once everybody has called who can in this turn of the loop
            self._is_departing = True
            self._loop.call_soon(self._depart)
        timer = self._loop.call_at(deadline, call.expire)
        try:
            return await call.answer
        except (asyncio.CancelledError, DeadlineExceeded):
            call.leave()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Give up all calls that wait."""
        for waiting in self._waiting:
            while waiting:
                waiting.popleft().fail(Cancelled(grpc.StatusCode.CANCELLED, "the client was closed"))

    def _depart(self, *, is_forced: bool = False) -> None:
        """Send what may go; if forced, one group more."""
        self._is_departing = False
        while (is_forced or len(self._under_way) < self._lanes) and (calls := self._take()):
            is_forced = False
            contexts = [call.context for call in calls]
            context = self._context(contexts) if self._context else contexts[0]
            task = self._loop.create_task(self._travel(calls), context=context)
            for call in calls:
                call.companions, call.task = calls, task
            self._under_way.add(task)
            task.add_done_callback(self._arrive)
        if any(self._waiting) and self._patience is None:
            self._patience = self._loop.call_later(PATIENCE_S, self._lose_patience)

    def _take(self) -> list[Call]:
        """Return the calls that go next, none if none wait. Both forms get their turn, whatever the other's number."""
        self._turn ^= 1
        for waiting in (self._waiting[self._turn], self._waiting[self._turn ^ 1]):
            if waiting:
                return [waiting.popleft() for _ in range(min(len(waiting), MERGED_IMAGES))]
        return []

    def _arrive(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if any(self._waiting):
            self._depart()

    def _lose_patience(self) -> None:
        self._patience = None
        self._depart(is_forced=True)

    async def _travel(self, calls: list[Call]) -> None:
        calls = [call for call in calls if not call.is_over()]
        if not calls:  # they have left in the meantime
            return
        request = _wire.request(self._options, b"".join([call.data for call in calls]), is_float=calls[0].is_float)
        latest = max(call.deadline for call in calls)  # each caller's own deadline has its own timer
        try:
            answer = _wire.columns(await self._ask(request, latest - self._loop.time()), len(calls))
        except InvalidRequest as error:
            if len(calls) == 1:
                calls[0].fail(error)
                return
            middle = len(calls) // 2  # only the guilty may fail; who it is, halving tells
            await self._travel(calls[:middle])
            await self._travel(calls[middle:])
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting
            for call in calls:
                call.fail(again(error))
        else:
            for call, prediction in zip(calls, _messages.each(answer), strict=True):
                if not call.answer.done():
                    call.answer.set_result(prediction)
