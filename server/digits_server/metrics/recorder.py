"""What is counted and timed, in Prometheus' terms. The only module that knows prometheus_client.

A process that serves writes numbers to its board (`Metrics`), and the one that has the page reads all boards (`page`).
That one may be a supervisor: nothing here needs grpc, numpy or onnxruntime.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from digits_server.metrics import definitions as families
from digits_server.metrics import drift
from digits_server.metrics.board import Board
from digits_server.metrics.boards import Boards
from digits_server.metrics.definitions import Family

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    import grpc

    from digits_server.inference.engine import Predictions
    from digits_server.inference.request import BatchReport
    from digits_server.models.package import Package

RpcCounter = Callable[["grpc.StatusCode", float, int], None]


class Metrics:
    """What the parts of a serving process tell about their work.

    Args:
        board: Where it is written.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self.certificate(0)

    def rpc(self, kind: str, service: str, method: str) -> RpcCounter:
        """Return what counts the RPCs of one method: call it with the status, seconds in the handler, and how many."""
        import grpc  # noqa: PLC0415 - only a process that serves gets here

        board, cells, labels, ok = self._board, self._board.cells, (kind, service, method), grpc.StatusCode.OK
        observe = board.histogram(families.HANDLING, *labels)
        handled = board.cell(families.HANDLED, *labels, ok.name)

        def done(code: grpc.StatusCode, elapsed_s: float, times: int) -> None:
            cells[handled if code is ok else board.cell(families.HANDLED, *labels, code.name)] += times
            observe(elapsed_s, times)

        return done

    def traced(self, kind: str, service: str, method: str) -> Callable[[float, bytes], None]:
        """Return what remembers an RPC's trace: call it with the seconds in the handler and the trace's 16 bytes."""
        return self._board.exemplars(families.HANDLING, kind, service, method)

    def rejected(self, reason: str) -> None:
        """Count a request refused on arrival."""
        self._board.count(families.REJECTED, reason)

    def models(self, *, refused: int, is_readable: bool) -> None:
        """Show how many versions have been refused, and whether the models folder can be read."""
        self._board.gauge(families.REFUSED, refused)
        self._board.gauge(families.UNREADABLE, not is_readable)

    def ready(self, is_ready: Callable[[], bool]) -> None:
        """Show whether this process serves."""
        self._board.gauge(families.READY, is_ready)

    def secret(self, name: str, result: str) -> None:
        """Count new files of a certificate or of tokens, taken or refused."""
        self._board.count(families.SECRETS, name, result)

    def certificate(self, expires: float) -> None:
        """Show when the certificate in force expires, in seconds since 1970."""
        self._board.gauge(families.EXPIRY, expires)

    def handshake(self) -> None:
        """Count a TLS handshake that has begun."""
        self._board.count(families.HANDSHAKES)

    def serving(self, package: Package, queue_depth: Callable[[], float]) -> Callable[[], None]:
        """Show a version that serves, with its number of waiting images, until what is returned here is called."""
        labels = (package.name, package.version)
        shown = [
            self._board.gauge(families.INFO, 1, *labels),
            self._board.gauge(families.GAIN, package.cost.batching_gain, *labels),
            self._board.gauge(families.DEPTH, queue_depth, *labels),
        ]

        def retired() -> None:
            for clear in shown:
                clear()

        return retired

    def batch(self, model: str) -> Callable[[BatchReport], None]:
        """Return what observes the runs of one model."""
        board = self._board
        queue = board.histogram_of_many(families.QUEUE, model)
        inference, size = board.histogram(families.INFERENCE, model), board.histogram(families.SIZE, model)

        def observe(report: BatchReport) -> None:
            queue(report.queue_s)
            inference(report.inference_s)
            size(report.size)
            board.count(families.UNWANTED, model, by=report.unwanted)
            board.count(families.BATCHES, model, report.release)

        return observe

    def predicted(self, package: Package) -> Callable[[Predictions], None]:
        """Return what observes the answers of one model, beside what its package says of the training images."""
        board, model = self._board, package.name
        cells, digits = board.cells, [board.cell(families.PREDICTIONS, model, label) for label in package.labels]
        confidence = board.histogram_of_array(families.CONFIDENCE, model)
        ink = board.histogram_of_array(families.INK, model)
        expected = drift.reference(package.engine.metadata, families.INKS)
        for feature, buckets in (("ink", _bucket_names(families.INK)), ("class", package.labels)):
            for bucket, share in zip(buckets, expected.get(feature, ()), strict=False):
                board.gauge(families.REFERENCE, share, model, feature, bucket)

        def observe(predictions: Predictions) -> None:
            for digit, count in Counter(predictions.digits.tolist()).items():
                cells[digits[digit]] += count
            confidence(predictions.confidences)
            ink(predictions.ink)

        return observe


def page(boards: Boards, processes: Callable[[], Mapping[str, int]]) -> WSGIApplication:
    """Return what answers a scrape.

    Args:
        boards: What has been counted.
        processes: Returns the process ids to tell about, by the value of their label `worker`.
    """
    registry = CollectorRegistry()
    registry.register(_Counted(boards))
    registry.register(_Processes(processes))
    PlatformCollector(registry=registry)
    return make_wsgi_app(registry)


class _Counted(Collector):
    """The families, as the boards have them."""

    def __init__(self, boards: Boards) -> None:
        self._boards = boards
        self._drift = drift.Drift()

    def collect(self) -> Iterator[Metric]:
        totals = self._boards.totals()
        for family in families.FAMILIES:
            yield from self._metric(family, totals.get(family, {}))
        yield from self._metric(families.DRIFT, self._drifts(totals))

    def _drifts(
        self, totals: Mapping[Family, Mapping[tuple[str, ...], list[float]]]
    ) -> dict[tuple[str, ...], list[float]]:
        """Return the drift of each model's features, of those with enough images."""
        counted = {
            (model, "ink", bucket): count
            for (model,), (_, *counts) in totals.get(families.INK, {}).items()
            for bucket, count in zip(_bucket_names(families.INK), counts, strict=True)
        }
        for (model, digit), (count,) in totals.get(families.PREDICTIONS, {}).items():
            counted[model, "class", digit] = count
        features: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for (model, feature, bucket), (share,) in totals.get(families.REFERENCE, {}).items():
            features[model, feature].append((share, counted[model, feature, bucket]))
        found = {
            labels: self._drift(*labels, *map(list, zip(*pairs, strict=True))) for labels, pairs in features.items()
        }
        return {labels: [value] for labels, value in found.items() if value is not None}

    def _metric(self, family: Family, totals: Mapping[tuple[str, ...], list[float]]) -> Iterator[Metric]:
        if family.kind == "histogram":
            histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
            for labels, (total, *counts) in totals.items():
                histogram.add_metric(labels, self._buckets(family, labels, counts), total)
            yield histogram
            return
        make = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}[family.kind]
        metric = make(family.name, family.text, labels=family.labels)
        for labels, (value,) in totals.items():
            metric.add_metric(labels, value)
        yield metric

    def _buckets(
        self, family: Family, labels: tuple[str, ...], counts: Sequence[float]
    ) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = [
            *zip(_bucket_names(family), accumulate(counts), strict=True)
        ]
        for bucket, found in enumerate(self._boards.exemplars(family, labels) if family.has_exemplars else ()):
            if found.timestamp:
                exemplar = Exemplar({"trace_id": found.trace_id.hex()}, found.value, found.timestamp)
                buckets[bucket] = (*buckets[bucket][:2], exemplar)
        return buckets


def _bucket_names(family: Family) -> list[str]:
    return [*map(str, family.bounds), "+Inf"]


class _Processes(Collector):
    """What the kernel knows about our processes: memory, CPU time, open files."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        metrics: dict[str, Metric] = {}
        for worker, pid in self._processes().items():
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                merged = metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    merged.add_sample(sample.name, {"worker": worker}, sample.value)
        return metrics.values()
