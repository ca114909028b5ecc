"""What all worker processes have measured, summed; and what is told about the processes themselves.

Loads neither numpy nor gRPC: a supervisor needs this, and serves nothing.
"""

from __future__ import annotations

import operator
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

ANSWER_S = 0.5
"""Time for workers to answer a scrape; one that hangs must not hold it up."""
Samples = list[Metric]
"""What a process has measured so far."""
Totals = Mapping[str, Mapping[str, float]]
"""Sums of samples, by model and by the sample's name."""
GAUGES: Mapping[str, Callable[[float, float], float]] = {
    "digits_queue_depth": operator.add,
    "digits_certificate_expiry_timestamp_seconds": min,
}
"""How gauges of several workers become one; all others: the largest."""


class Aggregate(Collector):
    """The sum over workers, by their last reports. Counters and histograms of the dead stay, their gauges go.

    The rule is that of prometheus_client's MultiProcessCollector, without its files. May be called on any thread.

    Args:
        ask: Asks workers for a report, and returns their process ids.
    """

    def __init__(self, ask: Callable[[], Iterable[int]] = lambda: ()) -> None:
        self._ask = ask
        self._changed = threading.Condition()
        self._answered: set[int] = set()
        self._living: dict[int, Samples] = {}  # by process id
        self._dead: Samples = []

    def update(self, pid: int, samples: Samples, *, was_asked: bool = False) -> None:
        """Take a worker's report: all that it has measured so far."""
        with self._changed:
            self._living[pid] = samples
            if was_asked:
                self._answered.add(pid)
                self._changed.notify_all()

    def retire(self, pid: int) -> None:
        """Keep what a worker has counted; it has ended."""
        with self._changed:
            counted = [metric for metric in self._living.pop(pid, []) if metric.type != "gauge"]
            self._dead = merge([*self._dead, *counted])
            self._answered.add(pid)
            self._changed.notify_all()

    def collect(self) -> Samples:
        """Return the sums, of what workers say now; of those that don't answer soon, what they said last."""
        with self._changed:
            self._answered.clear()
            asked = set(self._ask())
            self._changed.wait_for(lambda: asked <= self._answered, ANSWER_S)
            return merge([*self._dead, *(metric for metrics in self._living.values() for metric in metrics)])


def merge(metrics: Iterable[Metric]) -> Samples:
    """Return metrics without repetitions: those of one name as one, with the sums of their samples."""
    merged: dict[str, Metric] = {}
    samples: dict[tuple[object, ...], Sample] = {}
    for metric in metrics:
        merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        combine = GAUGES.get(metric.name, max) if metric.type == "gauge" else operator.add
        for sample in metric.samples:
            key = (metric.name, sample.name, *sample.labels.items())
            before = samples.get(key)
            if before is not None:
                exemplars = [found for found in (before.exemplar, sample.exemplar) if found]
                sample = before._replace(  # noqa: PLW2901 - the sum takes its place
                    value=combine(before.value, sample.value),
                    exemplar=max(exemplars, key=lambda found: float(found.timestamp or 0), default=None),
                )
            samples[key] = sample
    for (name, *_), sample in samples.items():
        merged[str(name)].samples.append(sample)
    return list(merged.values())


def by_model(metrics: Iterable[Metric]) -> Totals:
    """Return the sums of what is measured of models, over all other labels."""
    totals: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for sample in (sample for metric in metrics for sample in metric.samples if "model" in sample.labels):
        totals[sample.labels["model"]][sample.name] += sample.value
    return totals


@dataclass
class Page:
    """All that a scrape shows.

    Attributes:
        measured: What serves, here or in workers.
        workers_ready: Returns how many processes serve.
        processes: Returns the process ids to tell about, by the value of their label `worker`.
    """

    measured: Collector
    workers_ready: Callable[[], int]
    processes: Callable[[], Mapping[str, int]]
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.registry.register(self.measured)
        self.registry.register(_Processes(self.processes))
        PlatformCollector(registry=self.registry)
        ready = Gauge("digits_workers_ready", "Processes that are ready to serve.", registry=self.registry)
        ready.set_function(self.workers_ready)
        self.restarts = Counter(
            "digits_worker_restarts", "Workers that were replaced, by reason.", ["reason"], registry=self.registry
        )
        for reason in ("asked", "died", "hung", "not_started"):  # from 0 on: Prometheus sees no first step otherwise
            self.restarts.labels(reason)


class _Processes(Collector):
    """What the kernel knows about our processes: memory, CPU time, open files."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for worker, pid in self._processes().items():
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                merged = metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    merged.add_sample(sample.name, {"worker": worker}, sample.value)
        yield from metrics.values()
