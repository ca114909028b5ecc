"""What a run costs, by its size, and what that says about batches."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


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
    def verdict(self) -> str:
        """The same in words."""
        return f"batching helps {self.batching_gain:.1f}x, in batches of {self.best_batch_size()}"
