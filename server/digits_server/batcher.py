"""Merges concurrent requests into batches: what waits, what runs next, who gets which answer.

Knows nothing of gRPC, models or metrics. There is no task and no polling: everything happens in `submit`, in the
callback that forms a batch, and in the one that ends it. An idle batcher costs nothing, and there is no loop to die.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from digits_server.errors import DeadlineExpired, DeadlineTooShort, Draining, QueueFull

if TYPE_CHECKING:
    from concurrent.futures import Executor

SliceableT = TypeVar("SliceableT", bound="Sliceable")


class Sliceable(Protocol):
    """Rows that can be counted and cut: a numpy array, or columns of answers."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Self: ...


RowsT = TypeVar("RowsT", bound=Sliceable)
AnswersT = TypeVar("AnswersT", bound=Sliceable)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[AnswersT]):
    """What became of one request, or of one part of a request larger than a batch."""

    answers: AnswersT
    """One row for each row submitted."""
    queue_s: float
    """Time from submission until the batch began to run."""
    inference_s: float
    """Time the batch ran."""
    batch_size: int
    """Rows in the batch, other callers' included."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What happened in one run, for metrics."""

    size: int
    """Rows that ran."""
    queue_s: list[float]
    """For each request in the batch, how long it waited."""
    inference_s: float
    """Time the batch ran."""
    release: str
    """Why it ran: `idle` (nothing else was running), `full`, `busy` (the run before it ended), `wait` (time up)."""


@dataclass(eq=False, slots=True)
class _Job(Generic[RowsT, AnswersT]):
    """At most one batch full of one caller's rows. It owns the future that answers them."""

    rows: RowsT
    size: int
    submitted: float
    deadline: float
    future: asyncio.Future[Outcome[AnswersT]]

    def resolve(self, outcome: Outcome[AnswersT]) -> None:
        if not self.future.done():  # the caller may have left while the batch ran
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher(Generic[RowsT, AnswersT]):
    """Runs concurrent requests together. A lone request runs at once; while a batch runs, the next one forms.

    Lives on one event loop; not thread-safe. Close it to fail what still waits.

    Args:
        run: Answers a list of requests' rows with one row of answers for each row, in order. Called with at least
            one row, on the event loop, or in `executor` if there is one (which must then run one call at a time).
        max_batch_size: Most rows in one run. A larger request is cut into parts of this size.
        max_queue: Most rows waiting; one more is refused.
        cost: Estimates the seconds needed to run so many rows; tells which deadlines can't be met.
        max_wait_s: How long the first row may wait for a fuller batch.
        executor: Where to run batches that are too long for the event loop.
        on_batch: Told of each run.
        clock: Seconds, monotonic. Not the event loop's clock by default: uvloop's ticks in milliseconds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[RowsT]], AnswersT],
        *,
        max_batch_size: int,
        max_queue: int,
        cost: Callable[[int], float] = lambda _rows: 0.0,
        max_wait_s: float = 0.0,
        executor: Executor | None = None,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._cost = cost
        self._max_wait_s = max_wait_s
        self._executor = executor
        self._on_batch = on_batch
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[_Job[RowsT, AnswersT], None] = OrderedDict()  # a queue that callers can leave
        self._waiting_rows = 0
        self._is_due = False  # `_form` is about to be called
        self._is_running = False  # a batch is in the executor
        self._wait_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._expiry = float("inf")
        self._is_closed = False

    @property
    def waiting_rows(self) -> int:
        """Rows admitted and not yet running."""
        return self._waiting_rows

    async def submit(self, rows: RowsT, *, deadline: float = float("inf")) -> list[Outcome[AnswersT]]:
        """Return the answers to `rows`, in order: one outcome, or several if the request is larger than a batch.

        Args:
            rows: At least one row.
            deadline: Time on the batcher's clock after which the caller has no use for the answer.

        Raises:
            QueueFull: There is no room for all of the rows.
            DeadlineTooShort: The work already waiting would outlast the deadline.
            DeadlineExpired: The deadline passed while the rows waited.
            Draining: The batcher is closed.
        """
        jobs = self._admit(rows, deadline)
        try:
            if len(jobs) == 1:
                return [await jobs[0].future]
            return await asyncio.gather(*(job.future for job in jobs))
        finally:
            for job in jobs:  # a caller who leaves, or one of whose parts has failed, takes the rest along
                self._withdraw(job)
                job.future.cancel()

    def close(self) -> None:
        """Take nothing new and fail what still waits. A batch that is running ends and answers."""
        self._is_closed = True
        for job in list(self._waiting):
            self._withdraw(job)
            job.fail(Draining("the server shut down before the request could run"))

    def _admit(self, rows: RowsT, deadline: float) -> list[_Job[RowsT, AnswersT]]:
        size, now = len(rows), self._clock()
        if self._is_closed:
            raise Draining("the server is shutting down")
        if self._waiting_rows + size > self._max_queue:
            raise QueueFull(
                f"{self._waiting_rows} images are waiting; {size} more would exceed the queue's {self._max_queue}",
                retry_after_s=self._cost(self._waiting_rows),
            )
        if now + self._cost(self._waiting_rows + size) > deadline:
            raise DeadlineTooShort(
                f"{deadline - now:.4f} s are left, too few for the {self._waiting_rows + size} images to run until then"
            )
        parts = [rows] if size <= self._max_batch_size else _cut(rows, self._max_batch_size)
        jobs = [_Job(part, len(part), now, deadline, self._loop.create_future()) for part in parts]
        self._waiting.update(dict.fromkeys(jobs))
        self._waiting_rows += size
        self._wake("idle")
        if not self._is_due:  # it waits beyond this turn of the event loop
            self._watch(deadline)
        return jobs

    def _withdraw(self, job: _Job[RowsT, AnswersT]) -> None:
        if job in self._waiting:
            del self._waiting[job]
            self._waiting_rows -= job.size

    def _wake(self, reason: str) -> None:
        """See to it that a batch forms as soon as one should."""
        if self._is_running or self._is_due or not self._waiting:
            return  # if one is running, its end wakes us again
        if self._max_wait_s and self._waiting_rows < self._max_batch_size:
            oldest = next(iter(self._waiting))
            delay = oldest.submitted + self._max_wait_s - self._clock()
            if delay > 0:
                if self._wait_timer is None:
                    self._wait_timer = self._loop.call_later(delay, self._wait_over)
                return
            reason = "wait"
        # Not at once: requests that this same turn of the event loop has read join the batch.
        self._is_due = True
        self._loop.call_soon(self._form, reason)

    def _wait_over(self) -> None:
        self._wait_timer = None
        self._wake("wait")

    def _form(self, reason: str) -> None:
        """Take the oldest jobs that fit in one batch, and run them."""
        self._is_due = False
        start = self._clock()
        batch: list[_Job[RowsT, AnswersT]] = []
        room = self._max_batch_size
        while self._waiting and (job := next(iter(self._waiting))).size <= room:
            self._withdraw(job)
            if job.future.done():  # its caller is leaving
                continue
            if job.deadline <= start:
                job.fail(DeadlineExpired("the deadline passed while the request waited for its batch"))
            else:
                batch.append(job)
                room -= job.size
        if self._waiting or not room:
            reason = "full"
        if not batch:
            self._wake("busy")
        elif self._executor is None:
            self._finish(batch, reason, start, *self._execute(batch))
        else:
            self._is_running = True
            run = self._loop.run_in_executor(self._executor, self._execute, batch)
            run.add_done_callback(lambda done: self._finish(batch, reason, start, *done.result()))

    def _execute(self, batch: list[_Job[RowsT, AnswersT]]) -> tuple[list[AnswersT | Exception], float]:
        """Return a result for each job, and the seconds that took. Touches nothing that the event loop uses."""
        start = self._clock()
        results = self._attempt(batch)
        return results, self._clock() - start

    def _attempt(self, batch: list[_Job[RowsT, AnswersT]]) -> list[AnswersT | Exception]:
        """Return each job's answers, or the error that this job alone provokes."""
        try:
            answers = self._run([job.rows for job in batch])
            if len(answers) != (size := sum(job.size for job in batch)):
                raise RuntimeError(f"the model answered {len(answers)} rows to {size}")
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to a caller
            if len(batch) == 1:
                return [error]
            half = len(batch) // 2
            return self._attempt(batch[:half]) + self._attempt(batch[half:])
        if len(batch) == 1:
            return [answers]
        ends = list(accumulate(job.size for job in batch))
        return [answers[end - job.size : end] for job, end in zip(batch, ends, strict=True)]

    def _finish(
        self,
        batch: list[_Job[RowsT, AnswersT]],
        reason: str,
        start: float,
        results: list[AnswersT | Exception],
        inference_s: float,
    ) -> None:
        """Hand out the answers, and see to the next batch."""
        self._is_running = False
        size = sum(job.size for job in batch)
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                job.fail(result)
            else:
                job.resolve(Outcome(result, start - job.submitted, inference_s, size))
        self._wake("busy")
        self._on_batch(BatchReport(size, [start - job.submitted for job in batch], inference_s, reason))

    def _watch(self, deadline: float) -> None:
        """Make sure that what waits beyond its deadline is answered then, not when its turn comes."""
        if deadline < self._expiry:
            if self._expiry_timer is not None:
                self._expiry_timer.cancel()
            self._expiry = deadline
            self._expiry_timer = self._loop.call_later(deadline - self._clock(), self._expire)

    def _expire(self) -> None:
        now = self._clock()
        for job in [job for job in self._waiting if job.deadline <= now]:
            self._withdraw(job)
            job.fail(DeadlineExpired("the deadline passed while the request waited for its batch"))
        self._expiry, self._expiry_timer = float("inf"), None
        self._watch(min((job.deadline for job in self._waiting), default=float("inf")))


def _cut(rows: RowsT, size: int) -> list[RowsT]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
