"""The live figures: arithmetic on pages written here, and a real server's page."""

import httpx
import pytest
from gateways import conforms, start_gateway
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from digits_web import stats


class Page:
    """A metrics page as a server's, with numbers put in by hand."""

    def __init__(self):
        self.registry = CollectorRegistry()
        method = ["grpc_method"]
        self.seconds = Histogram(stats.LATENCY, "t", method, buckets=(0.001, 0.01, 0.1), registry=self.registry)
        self.rpcs = Counter(stats.RPCS, "t", [*method, "grpc_code"], registry=self.registry)
        self.images = Counter(stats.IMAGES, "t", ["digit"], registry=self.registry)
        self.sizes = Histogram(stats.SIZES, "t", registry=self.registry)
        self.depth = Gauge(stats.DEPTH, "t", registry=self.registry)

    def call(self, seconds, *, code="OK", images=1):
        self.seconds.labels("Classify").observe(seconds)
        self.rpcs.labels("Classify", code).inc()
        self.images.labels("3").inc(images)
        self.sizes.observe(images)

    def sample(self, at_s):
        return stats.parse(generate_latest(self.registry).decode(), at_s)


@pytest.fixture
def page():
    page = Page()
    page.call(0.05)
    return page


def test_rates_and_quantiles_are_of_the_time_between_two_readings(page):
    """What came before the first reading does not count, nor do calls that classify nothing."""
    before = page.sample(100)
    for _ in range(98):
        page.call(0.0005, images=2)
    page.call(0.005, code="INVALID_ARGUMENT", images=0)
    page.call(0.5)
    page.seconds.labels("ListModels").observe(3)
    page.depth.set(7)
    assert stats.summary(before, page.sample(110)) == {
        "window_s": 10,
        "requests_per_s": 10,
        "images_per_s": 19.7,
        "failures_per_s": 0.1,
        "latency_s": {"p50": pytest.approx(0.001 * 50 / 98), "p99": pytest.approx(0.01)},
        "mean_batch_size": 1.97,
        "queue_depth": 7,
    }


def test_quiet_service_has_no_latency(page):
    """Without calls there are rates of 0 and no quantiles; after one reading there are no rates either."""
    quiet = stats.summary(page.sample(0), page.sample(1))
    assert (quiet["requests_per_s"], quiet["latency_s"]) == (0, {"p50": None, "p99": None})
    once = page.sample(0)
    assert stats.summary(once, once)["requests_per_s"] is None


def test_calls_slower_than_all_buckets_count_as_the_last_bound():
    """A quantile beyond the last bound is at least that."""
    assert stats.quantile(0.99, {0.1: 0, 1.0: 1, float("inf"): 10}) == 1.0


def test_readings_leave_the_window_and_restarts_empty_it(page):
    """Figures are of the last ten seconds; when a server counts from zero again they start anew."""
    live = stats.Stats("http://x")
    for second in range(15):
        live._add(page.sample(second))
    assert [sample.at_s for sample in live._samples] == list(range(4, 15))
    restarted = Page()
    restarted.seconds.labels("Classify")
    live._add(restarted.sample(15))
    assert [sample.at_s for sample in live._samples] == [15]


def test_page_without_the_metrics_is_refused():
    """Something else's metrics page gives no figures, and says what is missing."""
    with pytest.raises(ValueError, match="there is no grpc_server_handling_seconds"):
        stats.parse("up 1\n", 0)


def test_figures_of_a_real_server(gateway):
    """After calls, /api/stats tells of them from the server's own page; the description fits."""
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        figures = http.get("/api/stats").raise_for_status().json()
        while not figures["requests_per_s"]:
            for _ in range(10):
                http.post(
                    "/api/classify", content=bytes(784), headers={"content-type": "application/octet-stream"}
                ).raise_for_status()
            figures = conforms(http.get("/api/stats").raise_for_status().json(), "Stats")
        assert 0 < figures["latency_s"]["p50"] <= figures["latency_s"]["p99"]
        assert figures["images_per_s"] == figures["requests_per_s"]
        assert figures["mean_batch_size"] >= 1


def test_gateway_without_a_metrics_page_says_so(shipped):
    """With no address of a metrics page, the figures are refused in words and all else works."""
    gateway = start_gateway(f"--server={shipped.address}", "--metrics-url=")
    answer = httpx.get(f"{gateway.url}/api/stats")
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "The gateway was started without the address of a metrics page.",
    )
    assert httpx.get(f"{gateway.url}/api/health").json()["ready"]
    assert gateway.stop() == 0
