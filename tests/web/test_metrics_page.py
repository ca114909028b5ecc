"""Rates and quantiles from two looks at a metrics page."""

import http.server
import math
import threading

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from digits_web import metrics


class Page:
    """A metrics page as a server's, with numbers put in by hand."""

    def __init__(self):
        self.registry = CollectorRegistry()
        labels, method = {"registry": self.registry}, ["grpc_method"]
        self.seconds = Histogram("grpc_server_handling_seconds", "t", method, buckets=(0.001, 0.01, 0.1), **labels)
        self.rpcs = Counter("grpc_server_handled", "t", [*method, "grpc_code"], **labels)
        self.images = Counter("digits_predictions", "t", ["digit"], **labels)
        self.sizes = Histogram("digits_batch_size", "t", ["model"], **labels)
        self.depth = Gauge("digits_queue_depth", "t", ["model"], **labels)

    def call(self, seconds, *, method="Classify", code="OK", images=1):
        self.seconds.labels(method).observe(seconds)
        self.rpcs.labels(method, code).inc()
        self.images.labels("3").inc(images)
        self.sizes.labels("toy").observe(images)

    def look(self, at_s):
        return metrics.look(generate_latest(self.registry).decode(), at_s)


@pytest.fixture
def page():
    page = Page()
    page.call(0.05)
    return page


def test_rates_and_quantiles_are_of_the_time_between_two_looks(page):
    """What came before the first look does not count, nor do calls that classify nothing, nor streams."""
    before = page.look(100)
    for number in range(98):
        page.call(0.0005, images=2, method=("Classify", "ModelInfer")[number % 2])
    page.call(0.005, code="INVALID_ARGUMENT", images=0)
    page.call(0.5)
    for method in ("ListModels", "ClassifyStream"):
        page.seconds.labels(method).observe(3)
        page.rpcs.labels(method, "INTERNAL").inc()
    page.depth.labels("toy").set(3)
    page.depth.labels("other").set(4)
    assert metrics.between(before, page.look(110)) == metrics.Interval(
        seconds=10,
        calls_per_s=10,
        failures_per_s=0.1,
        images_per_s=19.7,
        p50_s=pytest.approx(0.001 * 50 / 98),
        p99_s=pytest.approx(0.01),
        mean_batch_size=1.97,
        queue_depth=7,
    )


def test_a_quiet_service_has_no_latency(page):
    """Without calls there are rates of 0, no quantiles and no batches; with one look there are no rates either."""
    look = page.look(0)
    assert metrics.between(look, page.look(1)) == metrics.Interval(1, 0, 0, 0, None, None, None, 0)
    assert metrics.between(look, look).calls_per_s is None


def test_pages_of_prometheus_are_read_too(page):
    """Prometheus puts the time behind each sample that it hands on."""
    lines = generate_latest(page.registry).decode().splitlines()
    with_time = "\n".join(line if line.startswith("#") else f"{line} 1763744400000" for line in lines)
    assert metrics.look(with_time, 0) == page.look(0)


@pytest.mark.parametrize(
    ("share", "by_bound_s", "expected"),
    [
        (0.5, {1: 0, 2: 10, math.inf: 10}, 1.5),
        (0.99, {1: 0, 2: 10, math.inf: 100}, 2),  # all that is known: more than the last bound
        (0.5, {1: 0, math.inf: 0}, None),
        (0.5, {1: -5, math.inf: -7}, None),  # the server has been started anew
        (0.5, {}, None),
    ],
)
def test_quantile(share, by_bound_s, expected):
    """Calls are spread evenly within a bucket; without calls there is no quantile."""
    assert metrics.quantile(share, by_bound_s) == expected


def test_a_page_without_the_metrics_is_refused():
    """Something else's metrics page gives no figures, and says what is missing."""
    with pytest.raises(ValueError, match="there is no grpc_server_handling_seconds"):
        metrics.look('up{job="x"} 1\n', 0)


def test_what_speaks_no_http_is_an_error_of_the_network():
    """A port of something else, such as gRPC's, is told as one that can't be reached, without a stack."""

    class Other(http.server.BaseHTTPRequestHandler):
        def handle(self):
            self.request.sendall(b"\x00\x00\x12\x04\r\n\r\n")

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(OSError, match="no HTTP is spoken there"):
            metrics.fetch(f"http://127.0.0.1:{server.server_port}/metrics")
