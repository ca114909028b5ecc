"""The live figures: the last seconds of looks, and a real server's page."""

import httpx
import pytest
from gateways import conforms, start_gateway

from digits_web import stats


def scrape(at_s, rpcs):
    return stats.parse(
        f'grpc_server_handled_total{{grpc_method="Classify",grpc_code="OK"}} {rpcs}\n'
        f'grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="+Inf"}} {rpcs}\n',
        at_s,
    )


def test_scrapes_leave_the_window_and_restarts_empty_it():
    """Figures are of the last ten seconds; when a server counts from zero again they start anew."""
    live = stats.Stats("http://x")
    for second in range(15):
        live.add(scrape(second, 100 + second))
    assert [each.at_s for each in live._scrapes] == list(range(4, 15))
    live.add(scrape(15, 1))
    assert [each.at_s for each in live._scrapes] == [15]


PAGE = """\
# HELP grpc_server_handled_total RPCs that ended.
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{grpc_method="Classify",grpc_code="OK"} %(ok)d %(time)s
grpc_server_handled_total{grpc_method="ModelInfer",grpc_code="INTERNAL"} %(failed)d
grpc_server_handled_total{grpc_method="ClassifyStream",grpc_code="OK"} 1e9
grpc_server_handling_seconds_bucket{grpc_method="Classify",le="0.001"} %(fast)d
grpc_server_handling_seconds_bucket{grpc_method="Classify",le="0.002"} %(ok)d
grpc_server_handling_seconds_bucket{grpc_method="Classify",le="+Inf"} %(ok)d
digits_predictions_total{digit="3"} %(images)d
digits_predictions_total{digit="}"} %(images)d
digits_batch_size_count{model="a"} %(batches)d
digits_batch_size_sum{model="a"} %(images)d
digits_queue_depth{model="a"} 3
digits_input_drift{model="a"} NaN
"""


@pytest.mark.parametrize("time", ["", "1395066363000"], ids=["a server's", "federated by Prometheus"])
def test_figures_are_of_what_happened_between_two_scrapes(time):
    """Rates, percentiles within buckets and batch size come of the difference; streams don't count, depth is now's."""
    before = stats.parse(PAGE % {"ok": 10, "failed": 0, "fast": 5, "images": 10, "batches": 10, "time": time}, 100)
    after = stats.parse(PAGE % {"ok": 20, "failed": 2, "fast": 13, "images": 50, "batches": 20, "time": time}, 104)
    assert stats.figures(before, after) == {
        "window_s": 4,
        "requests_per_s": 3.0,
        "images_per_s": 20.0,
        "failures_per_s": 0.5,
        "latency_s": {"p50": pytest.approx(0.000625), "p99": pytest.approx(0.00195)},
        "mean_batch_size": 4.0,
        "queue_depth": 3,
    }
    nothing = stats.figures(after, after)
    assert (nothing["requests_per_s"], nothing["latency_s"]["p50"], nothing["mean_batch_size"]) == (None, None, None)


def test_pages_of_others_are_refused():
    """A page that is no Digits server's, or no metrics page at all, is a ValueError."""
    for page in ("up 1\n", "<html>no metrics</html>"):
        with pytest.raises(ValueError, match=r"\w"):
            stats.parse(page, 0)


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


def test_gateway_without_a_metrics_endpoint_says_so(shipped):
    """With no address of a metrics endpoint, the figures are refused in words and all else works."""
    gateway = start_gateway(f"--server={shipped.address}", "--metrics-url=")
    answer = httpx.get(f"{gateway.url}/api/stats")
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "The gateway was started without the address of a metrics endpoint.",
    )
    assert httpx.get(f"{gateway.url}/api/health").json()["ready"]
    assert gateway.stop() == 0
