"""Simulated time, and hosts in it that batch and admit as the server does; `callers.py` has who calls them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any


class Clock:
    """Time, which jumps to whatever is due next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._turns = count()

    def after(self, delay_s: float, do: Callable[..., None], *arguments: Any) -> None:
        """Call `do` in so many seconds; what is due at the same time keeps its order."""
        heappush(self._due, (self.now + delay_s, next(self._turns), do, arguments))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._due and self._due[0][0] <= until:
            self.now, _, do, arguments = heappop(self._due)
            do(*arguments)
        self.now = until


@dataclass(frozen=True)
class Costs:
    """What a host is made of: a batch takes `fixed_s + per_call_s` x calls of CPU time."""

    fixed_s: float
    per_call_s: float
    max_batch: int = 64
    max_queue: int = 4096
    cpu: float = 1.0
    """CPUs that the host may use, `cpu` x `period_s` in each `period_s`: the quotas of Linux."""
    period_s: float = 0.02

    @property
    def capacity(self) -> float:
        """Calls a second in full batches."""
        return self.cpu * self.max_batch / (self.fixed_s + self.per_call_s * self.max_batch)

    def busy_s(self, calls: int) -> float:
        """Return the CPU seconds of a batch."""
        return self.fixed_s + self.per_call_s * calls

    def end(self, start: float, busy_s: float, used_s: float) -> tuple[float, float]:
        """Return when work that begins at `start` ends, and what its last period has then used of its quota.

        Args:
            start: Time in seconds.
            busy_s: CPU seconds to do.
            used_s: CPU seconds already used in the period in which `start` lies.
        """
        quota_s = self.cpu * self.period_s
        if self.cpu >= 1 or busy_s <= quota_s - used_s:
            return start + busy_s, used_s + busy_s
        whole, rest_s = divmod(busy_s - max(0.0, quota_s - used_s), quota_s)
        return (start // self.period_s + 1 + whole) * self.period_s + rest_s, rest_s


@dataclass(slots=True, eq=False)
class Call:
    """One try of a call, and what its caller needs to know when it ends."""

    born: float
    """When the first try began."""
    deadline: float
    tries_left: int
    channel: Any
    then: Callable[[], None]
    host: Any = None
    is_over: bool = False


class Host:
    """Answers all who wait in one batch; while that runs, the next one forms.

    Args:
        clock: Time.
        costs: What it is made of.
        done: Told what became of each call, `ok`, `late`, `full` or `vanished`, and when to come back if it is `full`.
        admits: Whether it refuses at once what finds its queue full or can't make its deadline, as ours does.
    """

    def __init__(
        self, clock: Clock, costs: Costs, done: Callable[[Call, str, float], None], *, admits: bool = True
    ) -> None:
        self._clock, self._costs, self._done, self._admits = clock, costs, done, admits
        self._waiting: deque[Call] = deque()
        self._work_s = 1 / costs.capacity
        self._end = -1.0  # of the batch that runs
        self._is_running = False
        self._period, self._used_s = 0.0, 0.0
        self._is_silent = False

    def fall_silent(self) -> None:
        """From now on let its packets vanish."""
        self._is_silent = True

    def submit(self, call: Call) -> None:
        """Take a call, or refuse it."""
        waiting, now = len(self._waiting), self._clock.now
        if self._is_silent:
            self._done(call, "vanished", 0.0)
        elif self._admits and waiting >= self._costs.max_queue:
            self._done(call, "full", waiting * self._work_s)
        elif self._admits and max(now, self._end) + (waiting + 1) * self._work_s > call.deadline:
            self._done(call, "late", 0.0)
        else:
            self._waiting.append(call)
            if not self._is_running:
                self._run()

    def _run(self) -> None:
        now, costs = self._clock.now, self._costs
        batch: list[Call] = []
        while self._waiting and len(batch) < costs.max_batch:
            call = self._waiting.popleft()
            if self._admits and call.deadline <= now:
                self._done(call, "late", 0.0)
            else:
                batch.append(call)
        self._is_running = bool(batch)
        if batch:
            used_s = self._used_s if now // costs.period_s == self._period else 0.0
            self._end, self._used_s = costs.end(now, costs.busy_s(len(batch)), used_s)
            self._period = self._end // costs.period_s
            self._clock.after(self._end - now, self._finish, batch)

    def _finish(self, batch: list[Call]) -> None:
        for call in batch:
            in_time = "ok" if self._clock.now <= call.deadline else "late"
            self._done(call, "vanished" if self._is_silent else in_time, 0.0)
        self._run()
