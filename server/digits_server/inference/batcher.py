"""Merges concurrent requests into batches: who is admitted, what runs next and when, who gets which answer.

Knows nothing of gRPC, models or metrics. There is no task and no polling: everything happens in `submit`, in the
callback that forms a batch, and in the one that ends it. An idle batcher costs nothing, and there is no loop to die.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic

from digits_server.errors import DeadlineTooShort, Draining, InvalidArgument, QueueFull
from digits_server.inference.queue import Queue
from digits_server.inference.request import (
    AnswersT,
    BatchItem,
    BatchReport,
    Job,
    Outcome,
    ResultSlice,
    RowsT,
    run_batch,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

QUIET_S = 0.001
"""If nobody joins a batch for so long, nobody is coming. Not shorter: uvloop's timers tick in milliseconds."""
MAX_HOLD_S = 0.005
"""How long a batch may be held for others to join, as long as they do."""


class Batcher(Generic[RowsT, AnswersT]):
    """Runs concurrent requests together. A lone request runs at once; while a batch runs, the next one forms.

    Lives on one event loop; not thread-safe. Close it to fail what still waits.

    Args:
        run: Answers a list of requests' rows with one row of answers for each row, in order. Called with at least
            one row, on the event loop, or in `executor` if there is one (which must then run one call at a time).
        max_batch_size: Most rows in one run. A larger request is cut into parts of this size.
        max_queue: Most rows waiting, and of one request; one more is refused.
        cost: Estimates the seconds needed to run so many rows; tells which deadlines can't be met.
        expect: Told how many requests each batch answers, why it runs, and how many are in flight; returns how many
            to wait for before the next one.
            Not asked where there is an executor: the next batch forms during the run of the one before.
        max_wait_s: Instead of that, how long the first row waits for a full batch.
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
        expect: Callable[[int, str, int], int] = lambda _requests, _release, _in_flight: 1,
        max_wait_s: float = 0.0,
        executor: Executor | None = None,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self.max_batch_size = max_batch_size
        self.max_queue = max_queue
        self._cost = cost
        self._expect = expect
        self._max_wait_s = max_wait_s
        self._max_hold_s = max_wait_s or MAX_HOLD_S
        self._executor = executor
        self._on_batch = on_batch
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting: Queue[RowsT, AnswersT] = Queue(clock)
        self._expected = 1
        self.in_flight = 0
        """Callers whose requests are admitted and not released."""
        self._is_urgent = False  # somebody's deadline does not allow to wait for others
        self._joined = 0  # callers who waited when the hold timer was set
        self._hold_timer: asyncio.TimerHandle | None = None
        self._is_due = False  # `_form` is about to be called
        self._is_running = False  # a batch is in the executor
        self._is_closed = False

    @property
    def waiting_rows(self) -> int:
        """Rows admitted and not yet running."""
        return self._waiting.rows

    async def submit(self, rows: RowsT, *, deadline: float = float("inf")) -> list[Outcome[AnswersT]]:
        """Return the answers to `rows`, in order: one outcome, or several if the request is larger than a batch.

        Cancelled, it takes the rows that have not run out of the queue.

        Args:
            rows: At least one row.
            deadline: Time on the batcher's clock after which the caller has no use for the answer.

        Raises:
            InvalidArgument: There is never room for so many rows.
            QueueFull: There is no room for all of the rows.
            DeadlineTooShort: The work already waiting would outlast the deadline.
            DeadlineExpired: The deadline passed while the rows waited.
            Draining: The batcher is closed.
        """
        job: Job[RowsT, AnswersT] = Job(rows, deadline)
        self.admit(job)
        try:
            return await job.settled()
        finally:
            self.release(job)

    def close(self) -> None:
        """Take nothing new and fail what still waits. A batch that is running ends and answers."""
        self._is_closed = True
        for job in list(self._waiting.jobs):
            self._waiting.fail(job, Draining("the server shut down before the request could run"))

    def admit(self, job: Job[RowsT, AnswersT]) -> None:
        """Take a request in, as `submit` does, and return at once; whoever asked must release it, once.

        So a stream has several in the queue, in their order, without a task for each.

        Raises:
            InvalidArgument, QueueFull, DeadlineTooShort, Draining: As `submit`.
        """
        size, deadline, now = job.size, job.deadline, self._clock()
        if self._is_closed:
            raise Draining("the server is shutting down")
        if size > self.max_queue:
            raise InvalidArgument("images", f"{size} in one request; allowed are up to {self.max_queue}")
        if self._waiting.rows + size > self.max_queue:
            raise QueueFull(
                f"{self._waiting.rows} images are waiting; {size} more would exceed the queue's {self.max_queue}",
                retry_after_s=self._cost(self._waiting.rows),
            )
        if deadline < float("inf"):
            slack_s = deadline - now - self._cost(self._waiting.rows + size)
            if slack_s < 0:
                raise DeadlineTooShort(
                    f"{deadline - now:.4f} s are left, too few for {self._waiting.rows + size} images to run until then"
                )
            self._is_urgent |= slack_s < 2 * self._max_hold_s
        job.submitted = now
        self._waiting.add(job)
        if not self._is_due:
            self._wake()
            if not self._is_due:  # it waits beyond this turn of the event loop
                self._waiting.watch(deadline)
        self.in_flight += 1

    def release(self, job: Job[RowsT, AnswersT]) -> None:
        """Forget a request: its caller has the answer, or leaves, and then its rows leave the queue too."""
        self.in_flight -= 1
        if job.result is None:
            job.result = asyncio.CancelledError()
            self._waiting.withdraw(job)

    def _wake(self) -> None:
        """See to it that a batch forms when one should."""
        if self._is_running or self._is_due or not self._waiting.jobs:
            return  # if one is running, its end wakes us again
        if self._waiting.rows >= self.max_batch_size:
            self._form_soon("full")
        elif self._is_urgent or (len(self._waiting) >= self._expected and not self._max_wait_s):
            self._form_soon("joined")
        elif self._hold_timer is None:
            self._hold()

    def _hold(self) -> None:
        """Let others join, as long as the oldest request may wait."""
        left_s = next(iter(self._waiting.jobs)).submitted + self._max_hold_s - self._clock()
        if left_s <= 0:
            self._form_soon("wait")
        else:
            self._joined = len(self._waiting)
            self._hold_timer = self._loop.call_later(left_s if self._max_wait_s else QUIET_S, self._hold_over)

    def _hold_over(self) -> None:
        self._hold_timer = None
        if self._is_running or self._is_due or not self._waiting.jobs:
            return
        if len(self._waiting) == self._joined and not self._max_wait_s:
            self._form_soon("quiet")
        else:
            self._hold()

    def _form_soon(self, release: str) -> None:
        # Not at once: requests that this same turn of the event loop has read join the batch.
        self._is_due = True
        self._loop.call_soon(self._form, release)

    def _form(self, release: str) -> None:
        """Take the oldest rows that fit in one batch, and run them."""
        self._is_due = False
        start = self._clock()
        batch = self._waiting.take(self.max_batch_size, start)
        self._is_urgent = self._is_urgent and bool(self._waiting.jobs)  # of those who stay, one may be in a hurry
        if not batch:
            return
        if self._waiting.jobs or sum([item.size for item in batch]) == self.max_batch_size:
            release = "full"
        if self._executor is None:
            self._expected = self._expect(len(batch), release, self.in_flight)
            self._finish(batch, release, start, *self._execute(batch))
        else:
            self._is_running = True
            run = self._loop.run_in_executor(self._executor, self._execute, batch)
            run.add_done_callback(lambda done: self._finish(batch, release, start, *done.result()))

    def _execute(
        self, batch: list[BatchItem[RowsT, AnswersT]]
    ) -> tuple[list[ResultSlice[AnswersT] | Exception], float]:
        """Return a result for each item, and the seconds that took. Touches nothing that the event loop uses."""
        start = self._clock()
        results = run_batch(batch, self._run)
        return results, self._clock() - start

    def _finish(
        self,
        batch: list[BatchItem[RowsT, AnswersT]],
        release: str,
        start: float,
        results: list[ResultSlice[AnswersT] | Exception],
        inference_s: float,
    ) -> None:
        """Hand out the answers, and see to the next batch."""
        self._is_running = False
        unwanted = 0
        size = sum([item.size for item in batch])
        waits: list[float] = []
        for (job, _, rows), result in zip(batch, results, strict=True):
            wait_s = start - job.submitted
            waits.append(wait_s)
            unwanted += rows if job.is_over else 0  # its caller has left, or part of it has failed
            if isinstance(result, Exception):
                self._waiting.fail(job, result)
                continue
            job.outcomes.append(Outcome(*result, wait_s, inference_s, size))
            if job.taken == job.size:
                job.end(job.outcomes)
        self._wake()
        self._on_batch(BatchReport(size, waits, inference_s, release, unwanted))
