"""Requests while they are in a batcher: one, the queue of those that wait, and how a batch of them is answered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Protocol, Self, TypeVar

from digits_server.errors import DeadlineExpired


class Rows(Protocol):
    """Rows that can be counted and cut, such as a numpy array."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Self: ...


RowsT = TypeVar("RowsT", bound=Rows)
AnswersT = TypeVar("AnswersT", bound=Sized)
Part = tuple[AnswersT, int, int]
"""A batch's answers, and from which row to which they belong to a piece."""


@dataclass(slots=True)
class Outcome(Generic[AnswersT]):
    """What became of one request, or of one part of a request larger than a batch."""

    answers: AnswersT
    """Those of the whole batch; the request's own are rows `start` to `end`."""
    start: int
    end: int
    queue_s: float
    """Time from submission until the batch began to run."""
    inference_s: float
    """Time the batch ran."""
    batch_size: int
    """Rows in the batch, other callers' included."""


@dataclass(slots=True)
class BatchReport:
    """What happened in one run, for metrics."""

    size: int
    """Rows that ran."""
    queue_s: list[float]
    """For each caller in the batch, how long it waited."""
    inference_s: float
    """Time the batch ran."""
    release: str
    """Why it ran then: `full`, `joined` (all who were expected have), `quiet` (nobody else came), `wait` (time up)."""
    unwanted: int = 0
    """Rows that ran for callers who had left by the end."""


class Job(Generic[RowsT, AnswersT]):
    """One caller's rows, or those of several, on their way through a batcher. Await `settled`, or override `done`.

    Args:
        rows: At least one row.
        deadline: Time on the batcher's clock after which the caller has no use for the answer.
        callers: How many callers have a part in it.
    """

    __slots__ = ("callers", "deadline", "future", "gone", "outcomes", "result", "rows", "size", "submitted", "taken")
    submitted: float
    """Time of admission, on the batcher's clock."""

    def __init__(self, rows: RowsT, deadline: float = float("inf"), callers: int = 1) -> None:
        self.rows = rows
        self.size = len(rows)
        self.callers = callers
        self.gone = 0
        """Callers who have left while others of the same job have not: so many rows are wanted no more."""
        self.taken = 0
        """Rows that have run, or run now; fewer than all only for a request larger than a batch."""
        self.deadline = deadline
        self.outcomes: list[Outcome[AnswersT]] = []
        self.result: list[Outcome[AnswersT]] | BaseException | None = None
        """What became of it, as soon as that is known."""
        self.future: asyncio.Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the result any more: it is known, or the caller has left."""
        return self.result is not None or (self.future is not None and self.future.done())

    def end(self, result: list[Outcome[AnswersT]] | BaseException) -> None:
        """Tell the caller what became of it."""
        if not self.is_over:
            self.result = result
            self.done()

    def done(self) -> None:
        """Called when the result is known, once, but not if the caller has left. Must not raise."""
        if self.future is not None:
            self.future.set_result(None)

    async def settled(self) -> list[Outcome[AnswersT]]:
        """Return the outcomes: one, or several if the request is larger than a batch."""
        if self.result is None:
            self.future = asyncio.get_running_loop().create_future()
            await self.future
        if isinstance(self.result, BaseException):
            raise self.result
        return self.outcomes


Piece = tuple[Job[RowsT, AnswersT], RowsT, int]
"""Rows of a job that run in one batch: all of them, unless there are more than a batch holds; and their number."""


class Queue(Generic[RowsT, AnswersT]):
    """Jobs that wait, oldest first, counted in rows. Their callers may leave at any time; their deadlines may pass.

    Args:
        clock: Seconds, monotonic; deadlines are on it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._expiry = float("inf")
        self._expiry_timer: asyncio.TimerHandle | None = None
        self.jobs: OrderedDict[Job[RowsT, AnswersT], None] = OrderedDict()
        self.rows = 0
        self.callers = 0

    def add(self, job: Job[RowsT, AnswersT]) -> None:
        """Let a job wait."""
        self.jobs[job] = None
        self.rows += job.size
        self.callers += job.callers

    def withdraw(self, job: Job[RowsT, AnswersT]) -> None:
        """Take out what has not run of a job, if it waits."""
        if job in self.jobs:
            del self.jobs[job]
            self.rows -= job.size - job.taken
            self.callers -= job.callers

    def fail(self, job: Job[RowsT, AnswersT], error: Exception) -> None:
        """Answer a job with an error, and take it out."""
        self.withdraw(job)
        job.end(error)

    def take(self, max_rows: int, now: float) -> list[Piece[RowsT, AnswersT]]:
        """Return the next batch: whole requests; of one that is larger than `max_rows`, so many rows."""
        batch: list[Piece[RowsT, AnswersT]] = []
        room = max_rows
        while self.jobs:
            job = next(iter(self.jobs))
            size = min(job.size - job.taken, max_rows)
            if job.is_over:  # its caller is leaving
                self.withdraw(job)
            elif job.deadline <= now:
                self.fail(job, DeadlineExpired("the deadline passed while the request waited for its batch"))
            elif size > room:
                break
            else:
                rows = job.rows if size == job.size else job.rows[job.taken : job.taken + size]
                batch.append((job, rows, size))
                room -= size
                job.taken += size
                self.rows -= size
                if job.taken == job.size:
                    del self.jobs[job]
                    self.callers -= job.callers
        return batch

    def watch(self, deadline: float) -> None:
        """Make sure that what waits beyond its deadline is answered then, not when its turn comes."""
        if deadline < self._expiry:
            if self._expiry_timer is not None:
                self._expiry_timer.cancel()
            self._expiry = deadline
            self._expiry_timer = self._loop.call_later(deadline - self._clock(), self._expire)

    def _expire(self) -> None:
        now = self._clock()
        for job in [job for job in self.jobs if job.deadline <= now]:
            self.fail(job, DeadlineExpired("the deadline passed while the request waited for its batch"))
        self._expiry, self._expiry_timer = float("inf"), None
        self.watch(min((job.deadline for job in self.jobs), default=float("inf")))


def answer(
    batch: Sequence[Piece[RowsT, AnswersT]], run: Callable[[Sequence[RowsT]], AnswersT]
) -> list[Part[AnswersT] | Exception]:
    """Return each piece's part of the answers, or the error that this piece alone provokes.

    Args:
        batch: At least one piece.
        run: Answers a list of rows with one row of answers for each row, in order.
    """
    ends = list(accumulate([size for _, _, size in batch]))
    try:
        answers = run([rows for _, rows, _ in batch])
        if len(answers) != ends[-1]:
            raise RuntimeError(f"the model answered {len(answers)} rows to {ends[-1]}")
    except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to a caller
        if len(batch) == 1:
            return [error]
        half = len(batch) // 2  # who is guilty, halving tells
        return answer(batch[:half], run) + answer(batch[half:], run)
    return [(answers, end - size, end) for (_, _, size), end in zip(batch, ends, strict=True)]
