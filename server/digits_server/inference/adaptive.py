"""How many requests a batch is worth waiting for: a guess from the last batches and from how busy the process is."""

from __future__ import annotations

import time
from collections.abc import Callable

BUSY = 0.7
"""Share of the time that the process computes, above which a run for every request is a luxury."""
WINDOW_S = 0.01
"""Time over which that share is measured."""
COUNT_EVERY = 16
"""Batches between two that wait until nobody else comes, to count the callers."""
ALL = 1 << 30
"""More requests than there can be: wait until nobody else comes."""


class Concurrency:
    """Estimates how many callers there are; told of each batch that ran, returns how many to wait for before the next.

    On a busy server a run for every request makes each of them pay for waking threads and sockets; answers that go out
    together share that. The callers who are about to ask again can't be seen, but they can be counted: a batch that
    was held until nobody else came held a request of each. Half of them are worth waiting for: while one half is
    answered the other half joins, and nobody waits for a caller who has left, unless most of them leave at once.

    A lone caller never has two requests in flight, so it is never made to wait. Nor is anybody while the process has
    time to spare.

    Args:
        cpus: CPUs that this process may keep busy.
        clock: Seconds, monotonic.
        thread_time: CPU seconds of the calling thread, the event loop's.
        process_time: CPU seconds of all threads.
    """

    def __init__(
        self,
        cpus: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        thread_time: Callable[[], float] = time.thread_time,
        process_time: Callable[[], float] = time.process_time,
    ) -> None:
        self._cpus = cpus
        self._clock = clock
        self._times = (clock, thread_time, process_time)
        self._measured = tuple(measure() for measure in self._times)
        self._is_busy = False
        self._callers = 1
        self._uncounted = 0  # batches since the callers were counted
        self._has_company = False  # more than one request was in flight since then

    def __call__(self, requests: int, release: str, in_flight: int) -> int:
        """Return how many requests to wait for before the next batch.

        Args:
            requests: Requests in the batch that runs now.
            release: Why it runs now.
            in_flight: Requests whose callers have not had their answers yet, this batch's included.
        """
        if self._clock() - self._measured[0] >= WINDOW_S:
            self._measure()
        # Everybody was there, or so it seems: the machine may have paused, so the guess shrinks by half at most.
        self._callers = max(requests, self._callers // 2 if release == "quiet" else self._callers)
        self._has_company |= in_flight > 1
        self._uncounted += 1
        if not self._is_busy:
            return 1
        if self._has_company and self._uncounted >= COUNT_EVERY:
            self._uncounted, self._has_company = 0, False
            return ALL
        return (self._callers + 1) // 2

    def _measure(self) -> None:
        now = tuple(measure() for measure in self._times)
        wall, thread, process = (after - before for after, before in zip(now, self._measured, strict=True))
        self._measured = now
        # Either the event loop itself is the bottleneck, or the CPUs are, with grpc's and onnxruntime's threads.
        self._is_busy = max(thread, process / self._cpus) > BUSY * wall
