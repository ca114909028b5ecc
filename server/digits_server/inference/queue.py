"""Jobs that wait for a batch: counted in rows, free to leave, answered when their deadlines pass."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic

from digits_server.errors import DeadlineExpired
from digits_server.inference.request import AnswersT, BatchItem, Job, RowsT


class Queue(Generic[RowsT, AnswersT]):
    """Jobs that wait, oldest first. Their callers may leave at any time; their deadlines may pass.

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

    def __len__(self) -> int:
        return len(self.jobs)

    def add(self, job: Job[RowsT, AnswersT]) -> None:
        """Let a job wait."""
        self.jobs[job] = None
        self.rows += job.size

    def withdraw(self, job: Job[RowsT, AnswersT]) -> None:
        """Take out what has not run of a job, if it waits."""
        if job in self.jobs:
            del self.jobs[job]
            self.rows -= job.size - job.taken

    def fail(self, job: Job[RowsT, AnswersT], error: Exception) -> None:
        """Answer a job with an error, and take it out."""
        self.withdraw(job)
        job.end(error)

    def take(self, max_rows: int, now: float) -> list[BatchItem[RowsT, AnswersT]]:
        """Return the next batch: whole requests; of one that is larger than `max_rows`, so many rows."""
        batch: list[BatchItem[RowsT, AnswersT]] = []
        room = max_rows
        while self.jobs:
            job = next(iter(self.jobs))
            size = min(job.size - job.taken, max_rows)
            if job.is_over:  # its caller is leaving
                self.withdraw(job)
            elif job.deadline <= now:
                self.fail(job, _expired())
            elif size > room:
                break
            else:
                rows = job.rows if size == job.size else job.rows[job.taken : job.taken + size]
                batch.append(BatchItem(job, rows, size))
                room -= size
                job.taken += size
                self.rows -= size
                if job.taken == job.size:
                    del self.jobs[job]
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
            self.fail(job, _expired())
        self._expiry, self._expiry_timer = float("inf"), None
        self.watch(min((job.deadline for job in self.jobs), default=float("inf")))


def _expired() -> DeadlineExpired:
    return DeadlineExpired("the deadline passed while the request waited for its batch")
