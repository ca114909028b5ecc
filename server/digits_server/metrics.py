"""What is counted and timed, in Prometheus' terms. The only module that knows prometheus_client."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import grpc
import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from digits_server.batcher import BatchReport
from digits_server.engine import Predictions
from digits_server.packages import Package

SECONDS = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005),
    *(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
"""Bucket bounds: a run takes tens of microseconds, a call under load a few milliseconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONFIDENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

RpcCounter = Callable[[grpc.StatusCode, float], None]


class Counts(Collector):
    """A counter whose values are numbers in a dictionary: adding to one costs no call and takes no lock.

    Attributes:
        values: Totals by label values. Each is written from one thread.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.values: defaultdict[tuple[str, ...], int] = defaultdict(int)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the one family of this counter."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in list(self.values.items()):
            family.add_metric(labels, value)
        yield family


class LazyHistogram(Collector):
    """A histogram that keeps what it observes and sorts it into buckets many at a time.

    That is done at each scrape, or when `_KEEP` numbers are kept. prometheus_client's own histogram takes more than a
    microsecond for each observation; an append takes a tenth of that.
    """

    _KEEP = 4096

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = np.array(bounds)
        self._names = [*map(str, bounds), "+Inf"]
        self._kept: dict[tuple[str, ...], deque[float]] = {}
        self._counts: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def observer(self, *labels: str) -> Callable[[Iterable[float]], None]:
        """Return what observes a few numbers under these label values."""
        kept = self._kept.setdefault(labels, deque())

        def observe(values: Iterable[float]) -> None:
            kept.extend(values)
            if len(kept) >= self._KEEP:
                self._sort_kept(labels)

        return observe

    def sort_in(self, labels: tuple[str, ...], values: npt.NDArray[np.floating]) -> None:
        """Observe many numbers at once, (n,) of them, under these label values."""
        counts = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._names))
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + counts
            self._sums[labels] = self._sums.get(labels, 0.0) + float(values.sum())

    def _sort_kept(self, labels: tuple[str, ...]) -> None:
        kept = self._kept[labels]
        with self._lock:  # an observer and a scrape may meet here; others may append meanwhile
            values = np.array([kept.popleft() for _ in range(len(kept))], np.float64)
        self.sort_in(labels, values)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the one family of this histogram."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels in list(self._kept):
            self._sort_kept(labels)
        for labels in list(self._counts):
            buckets = list(zip(self._names, np.cumsum(self._counts[labels]).tolist(), strict=True))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

        rpc, model = ["grpc_type", "grpc_service", "grpc_method"], ["model"]
        self._handled = self._counts("grpc_server_handled", "RPCs completed.", [*rpc, "grpc_code"])
        self._handling = self._histogram("grpc_server_handling_seconds", "Time in the RPC's handler.", rpc, SECONDS)
        self._rejected = self._counts("digits_rejected", "Requests refused on arrival.", ["reason"])
        self._secrets = self._counts("digits_secret_loads", "New certificates, tokens.", ["secret", "result"])
        self._handshakes = self._counts("digits_tls_handshakes", "TLS handshakes begun.", [])
        self._queue = self._histogram("digits_queue_seconds", "Wait of a request for its batch.", model, SECONDS)
        self._inference = self._histogram("digits_inference_seconds", "Time of a run of the model.", model, SECONDS)
        self._size = self._histogram("digits_batch_size", "Images in a run.", model, SIZES)
        self._batches = self._counts("digits_batches", "Runs, by what released them.", [*model, "release"])
        self._predictions = self._counts("digits_predictions", "Images, by answer.", [*model, "digit"])
        self._confidence = self._histogram("digits_confidence", "Probability of the answer.", model, CONFIDENCES)
        self._expiry = Gauge(
            "digits_certificate_expiry_timestamp_seconds",
            "When the server's certificate expires, since 1970; 0: there is none.",
            registry=self._registry,
        )

        self._refused = Gauge(
            "digits_models_refused", "Versions on disk that can't be served.", registry=self._registry
        )
        self._unreadable = Gauge(
            "digits_models_unreadable", "1 while the models folder can't be read.", registry=self._registry
        )

        version = ["model", "version"]
        self._depth = Gauge("digits_queue_depth", "Images waiting.", version, registry=self._registry)
        self._info = Gauge("digits_model_info", "1 for a version that serves.", version, registry=self._registry)
        self._gain = Gauge(
            "digits_batching_gain",
            "Images/s in the best batch over images/s alone, measured when the model was loaded.",
            version,
            registry=self._registry,
        )

    def _counts(self, name: str, text: str, labels: Sequence[str]) -> Counts:
        counts = Counts(name, text, labels)
        self._registry.register(counts)
        return counts

    def _histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> LazyHistogram:
        histogram = LazyHistogram(name, text, labels, bounds)
        self._registry.register(histogram)
        return histogram

    @property
    def page(self) -> WSGIApplication:
        """What answers a scrape."""
        return make_wsgi_app(self._registry)

    def rpc(self, kind: str, service: str, method: str) -> RpcCounter:
        """Return what counts the RPCs of one method: call it with the status and the seconds in the handler."""
        labels = (kind, service, method)
        observe, handled = self._handling.observer(*labels), self._handled.values
        by_code = {code: (*labels, code.name) for code in grpc.StatusCode}

        def done(code: grpc.StatusCode, elapsed_s: float) -> None:
            handled[by_code[code]] += 1
            observe((elapsed_s,))

        return done

    def rejected(self, reason: str) -> None:
        """Count a request refused on arrival."""
        self._rejected.values[(reason,)] += 1

    def secret(self, name: str, result: str) -> None:
        """Count new files of a certificate or of tokens, taken or refused."""
        self._secrets.values[name, result] += 1

    def certificate(self, expires: float) -> None:
        """Show when the certificate in force expires, in seconds since 1970."""
        self._expiry.set(expires)

    def handshake(self) -> None:
        """Count a TLS handshake that has begun."""
        self._handshakes.values[()] += 1

    def serving(self, package: Package, queue_depth: Callable[[], float]) -> Callable[[], None]:
        """Show a version that serves, with its number of waiting images, until what is returned here is called."""
        labels = (package.name, package.version)
        self._info.labels(*labels).set(1)
        self._gain.labels(*labels).set(package.cost.batching_gain)
        self._depth.labels(*labels).set_function(queue_depth)

        def retired() -> None:
            for gauge in (self._info, self._gain, self._depth):
                gauge.remove(*labels)

        return retired

    def models(self, *, refused: int, is_readable: bool) -> None:
        """Show how many versions have been refused, and whether the models folder can be read."""
        self._refused.set(refused)
        self._unreadable.set(not is_readable)

    def batch(self, model: str) -> Callable[[BatchReport], None]:
        """Return what observes the runs of one model."""
        queue, inference, size = (histogram.observer(model) for histogram in (self._queue, self._inference, self._size))

        def observe(report: BatchReport) -> None:
            queue(report.queue_s)
            inference((report.inference_s,))
            size((report.size,))
            self._batches.values[model, report.release] += 1

        return observe

    def predicted(self, model: str, labels: Sequence[str]) -> Callable[[Predictions], None]:
        """Return what observes the answers of one model."""
        keys = [(model, label) for label in labels]
        values = self._predictions.values
        values.update(dict.fromkeys(keys, 0))

        def observe(predictions: Predictions) -> None:
            for digit, count in Counter(predictions.digits_bytes).items():
                values[keys[digit]] += count
            self._confidence.sort_in((model,), predictions.confidences)

        return observe
