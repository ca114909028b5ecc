"""What a run costs, by its size, and what that says about batches."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Rows of the runs that are measured."""
LATENCY_BUDGET_S = 0.02
"""Longest run that is measured, and so ever made: everybody who comes during a run waits for its end."""
_MEASURING_S = 0.003  # for each size: a start, or a new version, should not wait for figures that would be no better


@dataclass(frozen=True)
class CostCurve:
    """What a run costs, by its size: measured, with straight lines between the points."""

    sizes: tuple[int, ...]
    """Rows in a run, ascending."""
    seconds: tuple[float, ...]
    """Time of such a run, the fastest of several: others share the machine."""

    def __call__(self, rows: int) -> float:
        """Return the seconds that running `rows` takes; beyond the largest size, in runs of that size."""
        above = bisect_left(self.sizes, rows)  # asked for each request with a deadline: numpy would take 5 us
        if above == len(self.sizes):
            return self.seconds[-1] * rows / self.sizes[-1]
        if above == 0:
            return self.seconds[0]
        below = above - 1
        share = (rows - self.sizes[below]) / (self.sizes[above] - self.sizes[below])
        return self.seconds[below] + share * (self.seconds[above] - self.seconds[below])

    def best_batch_size(self, within_s: float = float("inf")) -> int:
        """Return the smallest size with 95 % of the most images per second that runs of at most `within_s` reach."""
        rates = {
            size: size / seconds
            for size, seconds in zip(self.sizes, self.seconds, strict=True)
            if seconds <= within_s or size == self.sizes[0]
        }
        return next(size for size, rate in rates.items() if rate >= 0.95 * max(rates.values()))

    def gain(self, size: int) -> float:
        """Return images per second in batches of `size`, over images per second alone."""
        return size * self(1) / self(size)

    @property
    def batching_gain(self) -> float:
        """What the best batches gain."""
        return self.gain(self.best_batch_size())

    @property
    def summary(self) -> str:
        """The measured gain in words."""
        return f"batching helps {self.batching_gain:.1f}x, in batches of {self.best_batch_size()}"


def measure(run: Callable[[int], object], clock: Callable[[], float], rest: float = 0.0) -> CostCurve:
    """Run batches of growing size and return what they cost, as far as one takes no longer than the budget.

    Args:
        run: Runs a batch of so many rows.
        clock: Seconds, those that count.
        rest: Pause after each run, over its length: how much of the CPU is left to others.
    """

    def clocked(size: int) -> float:
        start = clock()
        run(size)
        return clock() - start

    def fastest(size: int) -> float:
        best = total = clocked(size)  # not the best: the first run of a size allocates
        runs = 0
        while total < _MEASURING_S or runs < 4:
            time.sleep(rest * best)
            seconds = clocked(size)
            best, total, runs = min(best, seconds), total + seconds, runs + 1
        return best

    seconds = [fastest(SIZES[0])]
    while len(seconds) < len(SIZES) and seconds[-1] < LATENCY_BUDGET_S / 2:
        seconds.append(fastest(SIZES[len(seconds)]))
    return CostCurve(SIZES[: len(seconds)], tuple(seconds))
