"""What a serving process measures: names, labels and buckets of its metrics, and who calls them how."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import grpc
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from digits_server.metrics.arrays import ArrayCounter, ArrayHistogram, bucket_names

if TYPE_CHECKING:
    from digits_server.inference.engine import Predictions
    from digits_server.inference.request import BatchReport
    from digits_server.models.package import Package

SECONDS = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005),
    *(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
"""Bucket bounds: a run takes tens of microseconds, a call under load a few milliseconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONFIDENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
INKS = (0.02, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.2, 0.25, 0.3, 0.5)
"""Bucket bounds of mean ink: MNIST's digits have 0.03 to 0.4, half of them 0.1 to 0.15."""


class RpcCounter(Protocol):
    """Counts RPCs of one method that have ended."""

    def __call__(self, code: grpc.StatusCode, elapsed_s: float, trace_id: bytes = b"") -> None:
        """Count an RPC; `trace_id`, 16 bytes, becomes the exemplar of its duration."""


class Metrics(Collector):
    """The metrics of one serving process. May be told and collected on any thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        rpc, model, version = ["grpc_type", "grpc_service", "grpc_method"], ["model"], ["model", "version"]

        def seconds(name: str, documentation: str, labels: list[str]) -> Histogram:
            return Histogram(name, documentation, labels, buckets=SECONDS, registry=registry)

        self._handled = Counter("grpc_server_handled", "RPCs completed.", [*rpc, "grpc_code"], registry=registry)
        self._handling = seconds("grpc_server_handling_seconds", "Time spent in the handler of an RPC.", rpc)
        self._rejected = Counter(
            "digits_rejected", "Requests rejected on arrival, by reason.", ["reason"], registry=registry
        )
        self._secrets = Counter(
            "digits_secret_loads",
            "Certificates and tokens read, at the start and when their files have changed, by result.",
            ["secret", "result"],
            registry=registry,
        )
        self._handshakes = Counter("digits_tls_handshakes", "TLS handshakes started.", registry=registry)
        self._expiry = Gauge(
            "digits_certificate_expiry_timestamp_seconds",
            "When the server's certificate expires, as a Unix timestamp; 0: there is none.",
            registry=registry,
        )
        self._queue = ArrayHistogram(
            "digits_queue_seconds", "Time that a request waited for its batch.", model, registry, SECONDS
        )
        self._inference = seconds("digits_inference_seconds", "Duration of a batch's run.", model)
        self._size = Histogram("digits_batch_size", "Images in a batch.", model, buckets=SIZES, registry=registry)
        self._batches = Counter(
            "digits_batches", "Batches, by what released them.", [*model, "release"], registry=registry
        )
        self._cancelled = Counter(
            "digits_cancelled_images",
            "Images run for callers who cancelled before the end of the batch.",
            model,
            registry=registry,
        )
        self._predictions = ArrayCounter(
            "digits_predictions", "Images, by predicted class.", [*model, "digit"], registry
        )
        self._confidence = ArrayHistogram(
            "digits_confidence", "Probability of the predicted class.", model, registry, CONFIDENCES
        )
        feature = [*model, "feature", "bucket"]
        self._images = ArrayCounter(
            "digits_input_images",
            "Images, by bucket of a feature (ink: upper bound of the mean; class: predicted).",
            feature,
            registry,
        )
        self._reference = Gauge(
            "digits_reference_share", "Share of the training images in the same buckets.", feature, registry=registry
        )
        self._depth = Gauge("digits_queue_depth", "Images waiting in the queue.", version, registry=registry)
        self._info = Gauge("digits_model_info", "1 for each model version that serves.", version, registry=registry)
        self._gain = Gauge(
            "digits_batching_gain",
            "Images/s in the best batch over images/s one at a time, measured when the model was loaded.",
            version,
            registry=registry,
        )
        self._refused = Gauge(
            "digits_models_refused", "Model versions on disk that have been refused.", registry=registry
        )
        self._unreadable = Gauge(
            "digits_models_unreadable", "1 while the models folder can't be read.", registry=registry
        )

    def collect(self) -> Iterable[Metric]:
        """Return what has been measured so far."""
        return self._registry.collect()

    def rpc(self, kind: str, service: str, method: str) -> RpcCounter:
        """Return what counts and times the RPCs of one method; it counts from 0 on, as Prometheus needs."""
        handling, ok = self._handling.labels(kind, service, method), grpc.StatusCode.OK
        handled = self._handled.labels(kind, service, method, ok.name)

        def done(code: grpc.StatusCode, elapsed_s: float, trace_id: bytes = b"") -> None:
            (handled if code is ok else self._handled.labels(kind, service, method, code.name)).inc()
            handling.observe(elapsed_s, {"trace_id": trace_id.hex()} if trace_id else None)

        return done

    def rejected(self, reason: str) -> None:
        """Count a request refused on arrival."""
        self._rejected.labels(reason).inc()

    def models(self, *, refused: int, is_readable: bool) -> None:
        """Show how many versions have been refused, and whether the models folder can be read."""
        self._refused.set(refused)
        self._unreadable.set(not is_readable)

    def secret(self, name: str, result: str) -> None:
        """Count new files of a certificate or of tokens, taken or refused."""
        self._secrets.labels(name, result).inc()

    def certificate(self, expires: float) -> None:
        """Show when the certificate in force expires, in seconds since 1970."""
        self._expiry.set(expires)

    def handshake(self) -> None:
        """Count a TLS handshake that has begun."""
        self._handshakes.inc()

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

    def batch(self, model: str) -> Callable[[BatchReport], None]:
        """Return what observes the runs of one model."""
        queue, inference, size = self._queue.labels(model), self._inference.labels(model), self._size.labels(model)
        cancelled = self._cancelled.labels(model)
        batches: dict[str, Counter] = {}  # by what released them; looking labels up takes longer than counting

        def observe(report: BatchReport) -> None:
            queue.observe(np.array(report.queue_s, np.float32))
            inference.observe(report.inference_s)
            size.observe(report.size)
            if report.unwanted:
                cancelled.inc(report.unwanted)
            if report.release not in batches:
                batches[report.release] = self._batches.labels(model, report.release)
            batches[report.release].inc()

        return observe

    def predicted(self, package: Package) -> Callable[[Predictions], None]:
        """Return what observes the answers of one model, beside what its package says of the training images."""
        model, labels = package.name, list(package.labels)
        digits = self._predictions.labels(model, buckets=labels)
        classes = self._images.labels(model, "class", buckets=labels)
        ink = self._images.labels(model, "ink", buckets=bucket_names(INKS), bounds=INKS)
        confidence = self._confidence.labels(model)
        for (feature, bucket), share in reference(package.engine.metadata, labels).items():
            self._reference.labels(model, feature, bucket).set(share)

        def observe(predictions: Predictions) -> None:
            digits.count(predictions.digits)
            classes.count(predictions.digits)
            ink.observe(predictions.ink)
            confidence.observe(predictions.confidences)

        return observe


def reference(metadata: Mapping[str, str], labels: Iterable[str]) -> dict[tuple[str, str], float]:
    """Return what a package says of its training images: their share in each bucket of ink and of class, if it does.

    Args:
        metadata: The package's; `digits.reference` holds a histogram of mean ink and the shares of the classes.
        labels: Names of the classes.
    """
    found = json.loads(metadata.get("digits.reference", "{}"))
    histogram, classes = found.get("ink_histogram") or {}, found.get("class_shares")
    shares = histogram.get("shares")
    if classes is None or shares is None:
        return {}
    below = [0.0, *np.interp(INKS, histogram["edges"], np.cumsum([0.0, *shares])).tolist(), 1.0]
    ink = [high - low for low, high in pairwise(below)]
    return {
        **{("ink", bucket): share for bucket, share in zip(bucket_names(INKS), ink, strict=True)},
        **{("class", label): share for label, share in zip(labels, classes, strict=True)},
    }
