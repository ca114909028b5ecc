"""Numbers that one process writes and another may read: counters, gauges and histograms in flat shared memory.

A board is an array of doubles. Each number has one writer and its own cell, so counting is `cells[i] += 1`: no lock,
no file, no call, and nothing is lost when the writer is killed. Whoever reads must be told which cell means what.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple

from digits_server.metrics.definitions import Family

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CELLS = 1 << 18
"""Doubles on a board. Memory that nobody has written takes no space."""
BEAT_S = 0.25
"""Time between heartbeats."""
_BEAT, _READY, _FREE = range(3)  # cells
_EXEMPLAR = 4  # cells of an exemplar: time (0: none), value, and 16 bytes of trace id


class Key(NamedTuple):
    """What the cells from `start` on mean."""

    family: Family
    labels: tuple[str, ...]
    start: int


class Exemplar(NamedTuple):
    """One observation of a bucket and the trace it belongs to."""

    timestamp: float
    value: float
    trace_id: bytes


class Board:
    """One process' numbers.

    Args:
        file: Descriptor of the memory to share, from `share`; -1: private memory.
        on_key: Told of each cell before it is first written.
    """

    def __init__(self, file: int = -1, on_key: Callable[[Key], None] = lambda _key: None) -> None:
        self._bytes = memoryview(mmap.mmap(file, CELLS * 8))
        self.cells = self._bytes.cast("d")
        self.keys: list[Key] = []
        """What is on the board, in the order of claiming."""
        self._on_key = on_key
        self._starts: dict[tuple[str, tuple[str, ...]], int] = {}
        self._free = _FREE
        self._watched: dict[int, Callable[[], float]] = {}

    # What the writer calls.

    def cell(self, family: Family, *labels: str) -> int:
        """Return the first cell of a set of labels, a new one if need be."""
        start = self._starts.get((family.name, labels))
        if start is None:
            start, self._free = self._free, self._free + _size(family)
            key = Key(family, labels, start)
            self._on_key(key)
            self.keys.append(key)
            self._starts[family.name, labels] = start
        return start

    def count(self, family: Family, *labels: str, by: float = 1) -> None:
        """Add to a counter."""
        self.cells[self.cell(family, *labels)] += by

    def gauge(self, family: Family, value: float | Callable[[], float], *labels: str) -> Callable[[], None]:
        """Show a number, or what a function returns at each heartbeat, until what is returned here is called."""
        start = self.cell(family, *labels)
        if callable(value):
            self._watched[start] = value
            self.cells[start] = value()
        else:
            self.cells[start] = value

        def clear() -> None:
            self._watched.pop(start, None)
            self.cells[start] = float("nan")

        return clear

    def histogram(self, family: Family, *labels: str) -> Callable[..., None]:
        """Return what observes a number, once or so many times."""
        cells, total, bounds = self.cells, self.cell(family, *labels), family.bounds
        first = total + 1

        def observe(value: float, times: int = 1) -> None:
            cells[first + bisect_left(bounds, value)] += times
            cells[total] += value * times

        return observe

    def histogram_of_many(self, family: Family, *labels: str) -> Callable[[Sequence[float]], None]:
        """Return what observes many numbers at once: for 64 of them at a tenth of the time of one by one."""
        cells, total, bounds = self.cells, self.cell(family, *labels), family.bounds
        first = total + 1

        def observe(values: Sequence[float]) -> None:
            cells[total] += sum(values)
            values = sorted(values)
            done, size = 0, len(values)
            while done < size:
                bucket = bisect_left(bounds, values[done])
                end = bisect_right(values, bounds[bucket], done) if bucket < len(bounds) else size
                cells[first + bucket] += end - done
                done = end

        return observe

    def histogram_of_array(self, family: Family, *labels: str) -> Callable[[npt.NDArray[np.float32]], None]:
        """Return what observes the numbers of an array, (n,) float32."""
        import numpy as np  # noqa: PLC0415 - a supervisor has boards, too, and no arrays

        cells, total, bounds = self.cells, self.cell(family, *labels), np.array(family.bounds, np.float32)
        buckets = np.frombuffer(self._bytes, np.float64)[total + 1 : total + 2 + len(bounds)]

        def observe(values: npt.NDArray[np.float32]) -> None:
            cells[total] += float(np.add.reduce(values))
            np.add(buckets, np.bincount(bounds.searchsorted(values), minlength=len(buckets)), out=buckets)

        return observe

    def exemplars(self, family: Family, *labels: str) -> Callable[[float, bytes], None]:
        """Return what remembers an observation with its trace id, 16 bytes; it does not count it."""
        cells, start, bounds = self.cells, self.cell(family, *labels), family.bounds
        first = start + 2 + len(bounds)

        def remember(value: float, trace_id: bytes) -> None:
            cell = first + _EXEMPLAR * bisect_left(bounds, value)
            cells[cell] = 0.0  # whoever reads now sees none, rather than half of one
            cells[cell + 1] = value
            self._bytes[8 * cell + 16 : 8 * cell + 32] = trace_id
            cells[cell] = time.time()  # OpenMetrics wants the time of day

        return remember

    def beat(self) -> None:
        """Show that the process is alive, and what its watched gauges say now."""
        for start, value in self._watched.items():
            self.cells[start] = value()
        self.cells[_BEAT] = time.monotonic()

    # What both sides call.

    @property
    def last_beat(self) -> float:
        """When the process last showed that it is alive, on the monotonic clock; 0: not yet, for it is starting."""
        return self.cells[_BEAT]

    @property
    def is_ready(self) -> bool:
        """Whether the process serves."""
        return self.cells[_READY] == 1.0

    @is_ready.setter
    def is_ready(self, value: bool) -> None:
        self.cells[_READY] = value

    # What the reader calls.

    def numbers(self, key: Key) -> list[float]:
        """Return a counter's or gauge's number, or a histogram's sum and its buckets' counts."""
        size = 2 + len(key.family.bounds) if key.family.kind == "histogram" else 1
        return list(self.cells[key.start : key.start + size])

    def remembered(self, key: Key) -> Iterator[Exemplar]:
        """Yield a histogram's exemplars, bucket by bucket; those without one have time 0."""
        first = key.start + 2 + len(key.family.bounds)
        for cell in range(first, key.start + _size(key.family), _EXEMPLAR):
            before = self.cells[cell]
            exemplar = Exemplar(before, self.cells[cell + 1], bytes(self._bytes[8 * cell + 16 : 8 * cell + 32]))
            yield exemplar if self.cells[cell] == before else exemplar._replace(timestamp=0.0)


def _size(family: Family) -> int:
    """Return how many cells a set of labels takes: a number's; or a sum's, the buckets', and their exemplars'."""
    buckets = len(family.bounds) + 1
    return 1 if family.kind != "histogram" else 1 + buckets * (1 + _EXEMPLAR * family.has_exemplars)


def share() -> IO[bytes]:
    """Return memory for a board, open as a file without a name: it is gone with the last process that uses it."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("digits-board"), "wb")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.truncate(CELLS * 8)
    return file
