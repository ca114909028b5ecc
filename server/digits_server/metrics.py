"""What is counted and timed, in Prometheus' terms. The only module that knows prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from digits_server.batcher import BatchReport
from digits_server.engine import Predictions
from digits_server.registry import Package

SECONDS = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005),
    *(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
"""Bucket bounds: a run takes tens of microseconds, a call under load a few milliseconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONFIDENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

CodeCounter = Callable[[grpc.StatusCode, float], None]


class ArrayHistogram(Collector):
    """A histogram that observes a whole array at once; prometheus_client's own takes a microsecond for each number.

    Written from one thread for each label value; a scrape from another may miss the batch that is being added.
    """

    def __init__(self, name: str, text: str, label: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._label = name, text, label
        self._bounds = np.array(bounds)
        self._names = [*map(str, bounds), "+Inf"]
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, label: str, values: npt.ArrayLike) -> None:
        """Add `values`, (n,) numbers."""
        counts = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._names))
        self._counts[label] = self._counts.get(label, 0) + counts
        self._sums[label] = self._sums.get(label, 0.0) + float(np.sum(values))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the one family of this histogram."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for label, counts in list(self._counts.items()):
            buckets = list(zip(self._names, np.cumsum(counts).tolist(), strict=True))
            family.add_metric([label], buckets, self._sums[label])
        yield family


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, that nothing here asks for
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        rpc = ["grpc_type", "grpc_service", "grpc_method"]
        self._handled = Counter("grpc_server_handled", "RPCs completed.", [*rpc, "grpc_code"], registry=registry)
        self._handling = Histogram(
            "grpc_server_handling_seconds", "Time in the RPC's handler.", rpc, buckets=SECONDS, registry=registry
        )
        self._rejected = Counter("digits_rejected", "Requests refused on arrival.", ["reason"], registry=registry)

        self._queue = ArrayHistogram("digits_queue_seconds", "Time a request waited for its batch.", "model", SECONDS)
        self._confidence = ArrayHistogram("digits_confidence", "Probability of the answer.", "model", CONFIDENCES)
        registry.register(self._queue)
        registry.register(self._confidence)
        self._inference = Histogram(
            "digits_inference_seconds", "Time of one run of the model.", ["model"], buckets=SECONDS, registry=registry
        )
        self._size = Histogram("digits_batch_size", "Images in a run.", ["model"], buckets=SIZES, registry=registry)
        self._batches = Counter(
            "digits_batches", "Runs, by what released them.", ["model", "release"], registry=registry
        )
        self._predictions = Counter("digits_predictions", "Images, by answer.", ["model", "digit"], registry=registry)
        self._depth = Gauge("digits_queue_depth", "Images waiting.", ["model", "version"], registry=registry)
        self._info = Gauge("digits_model_info", "1 for a version that serves.", ["model", "version"], registry=registry)
        self._gain = Gauge(
            "digits_batching_gain",
            "Images/s in the best batch over images/s alone, measured when the model was loaded.",
            ["model", "version"],
            registry=registry,
        )

    @property
    def page(self) -> WSGIApplication:
        """What answers a scrape."""
        return make_wsgi_app(self._registry)

    def rpc(self, kind: str, service: str, method: str) -> CodeCounter:
        """Return what counts the RPCs of one method: call it with the status and the seconds in the handler."""
        labels = (kind, service, method)
        seconds = self._handling.labels(*labels)
        handled: dict[grpc.StatusCode, Any] = {}

        def done(code: grpc.StatusCode, elapsed_s: float) -> None:
            if code not in handled:
                handled[code] = self._handled.labels(*labels, code.name)
            handled[code].inc()
            seconds.observe(elapsed_s)

        return done

    def rejected(self, reason: str) -> None:
        """Count a request refused on arrival."""
        self._rejected.labels(reason).inc()

    def serving(self, package: Package, queue_depth: Callable[[], float]) -> None:
        """Show a version that serves; `queue_depth` is asked for the number of waiting images at each scrape."""
        labels = (package.name, package.version)
        self._info.labels(*labels).set(1)
        self._gain.labels(*labels).set(package.cost.gain)
        self._depth.labels(*labels).set_function(queue_depth)

    def batch(self, model: str) -> Callable[[BatchReport], None]:
        """Return what observes the runs of one model."""
        inference, size = self._inference.labels(model), self._size.labels(model)

        def observe(report: BatchReport) -> None:
            inference.observe(report.inference_s)
            size.observe(report.size)
            self._queue.observe(model, report.queue_s)
            self._batches.labels(model, report.release).inc()

        return observe

    def predicted(self, model: str, labels: Sequence[str]) -> Callable[[Predictions], None]:
        """Return what observes the answers of one model."""
        counters = [self._predictions.labels(model, label) for label in labels]

        def observe(predictions: Predictions) -> None:
            for digit, count in enumerate(np.bincount(predictions.digits).tolist()):
                if count:
                    counters[digit].inc(count)
            self._confidence.observe(model, predictions.confidences)

        return observe
