"""A counter and a histogram of prometheus_client's kind for what is observed many at a time, as arrays."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    import numpy.typing as npt


def bucket_names(bounds: Sequence[float]) -> list[str]:
    """Return the values of the label `le` for a histogram's upper bounds, infinity included."""
    return [*map(floatToGoString, bounds), "+Inf"]


class Buckets:
    """Counts by bucket, for one set of labels.

    Args:
        names: The buckets' names.
        bounds: Their upper bounds but the last one's, if they are ranges of numbers.
    """

    def __init__(self, names: Sequence[str], bounds: Sequence[float] = ()) -> None:
        self.names = names
        self._bounds = np.array(bounds, np.float32)
        self._counts, self._sum = np.zeros(len(names), np.int64), 0.0
        self._lock = threading.Lock()

    def count(self, buckets: npt.NDArray[np.integer]) -> None:
        """Count observations, (n,) indices of buckets."""
        self._add(buckets, 0.0)

    def observe(self, values: npt.NDArray[np.float32]) -> None:
        """Count observations, (n,) numbers to be put into buckets."""
        self._add(self._bounds.searchsorted(values), float(np.add.reduce(values)))

    def _add(self, buckets: npt.NDArray[np.integer], total: float) -> None:
        counts = np.bincount(buckets, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += total

    def read(self) -> tuple[list[int], float]:
        """Return the counts, and the sum of what was observed."""
        with self._lock:
            return self._counts.tolist(), self._sum


class ArrayCounter(Collector):
    """A counter whose last label is the bucket."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._children: dict[tuple[tuple[str, ...], tuple[str, ...]], Buckets] = {}
        registry.register(self)

    def labels(self, *labels: str, buckets: Sequence[str], bounds: Sequence[float] = ()) -> Buckets:
        """Return what counts for a set of labels without the last, which is one of `buckets`."""
        return self._children.setdefault((labels, tuple(buckets)), Buckets(buckets, bounds))

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the samples."""
        totals: Counter[tuple[str, ...]] = Counter()  # versions of one model may have different classes in part
        for (labels, buckets), child in list(self._children.items()):
            for bucket, count in zip(buckets, child.read()[0], strict=True):
                totals[*labels, bucket] += count
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, count in totals.items():
            family.add_metric(labels, count)
        yield family


class ArrayHistogram(Collector):
    """A histogram."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        self._name, self._documentation, self._labels, self._bounds = name, documentation, labels, buckets
        self._children: dict[tuple[str, ...], Buckets] = {}
        registry.register(self)

    def labels(self, *labels: str) -> Buckets:
        """Return what observes for a set of labels."""
        return self._children.setdefault(labels, Buckets(bucket_names(self._bounds), self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the samples."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, child in list(self._children.items()):
            counts, total = child.read()
            family.add_metric(labels, list(zip(child.names, accumulate(counts), strict=True)), total)
        yield family
