"""What the boards of several processes say together, whoever of them has died."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable

from digits_server.metrics.board import Board, Exemplar, Key
from digits_server.metrics.definitions import Family

_ACROSS: dict[str, Callable[[float, float], float]] = {"sum": operator.add, "max": max, "min": min}


class Boards:
    """What several boards say together. What the dead have counted stays; their gauges go.

    May be read on any thread.
    """

    def __init__(self) -> None:
        self._living: list[Board] = []
        self._past: dict[tuple[Family, tuple[str, ...]], list[float]] = {}
        self._lock = threading.Lock()

    def add(self, board: Board) -> None:
        """Read this board too."""
        with self._lock:
            self._living.append(board)

    def bury(self, board: Board) -> None:
        """Keep what a board's process has counted; it is dead."""
        with self._lock:
            self._living.remove(board)
            for key in board.keys:
                if key.family.kind != "gauge":
                    _join(self._past, key, board.numbers(key))

    def totals(self) -> dict[Family, dict[tuple[str, ...], list[float]]]:
        """Return the numbers of each set of labels, by family: one, or a histogram's sum and its buckets' counts."""
        with self._lock:
            sums = {labels: list(numbers) for labels, numbers in self._past.items()}
            for board in self._living:
                for key in list(board.keys):
                    numbers = board.numbers(key)
                    if not math.isnan(numbers[0]):  # as a gauge that was cleared is
                        _join(sums, key, numbers)
        totals: dict[Family, dict[tuple[str, ...], list[float]]] = {}
        for (family, labels), numbers in sums.items():
            totals.setdefault(family, {})[labels] = numbers
        return totals

    def exemplars(self, family: Family, labels: tuple[str, ...]) -> list[Exemplar]:
        """Return the last exemplar of each bucket, over all living boards; those without one have time 0."""
        with self._lock:
            found = [
                board.remembered(key)
                for board in self._living
                for key in list(board.keys)
                if key.family == family and key.labels == labels
            ]
        return [max(bucket) for bucket in zip(*found, strict=True)]


def _join(sums: dict[tuple[Family, tuple[str, ...]], list[float]], key: Key, numbers: list[float]) -> None:
    before = sums.setdefault((key.family, key.labels), numbers)
    if before is not numbers:
        sums[key.family, key.labels] = [*map(_ACROSS[key.family.across], before, numbers)]
