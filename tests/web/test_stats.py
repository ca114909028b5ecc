"""The live figures: the last seconds of looks, and a real server's page."""

import httpx
from gateways import conforms, start_gateway

from digits_client import watch
from digits_web import stats


def reading(at_s, rpcs):
    return watch.parse(
        f'grpc_server_handled_total{{grpc_method="Classify",grpc_code="OK"}} {rpcs}\n'
        f'grpc_server_handling_seconds_bucket{{grpc_method="Classify",le="+Inf"}} {rpcs}\n',
        at_s,
    )


def test_readings_leave_the_window_and_restarts_do_not_empty_it():
    """Figures are of the last ten seconds, also while a server that was restarted counts from zero again."""
    live = stats.Stats("http://x")
    for second in range(15):
        live.add(reading(second, 100 + second))
    assert [each.at_s for each in live._readings] == list(range(4, 15))
    live.add(reading(15, 3))
    assert (live._latest["window_s"], live._latest["requests_per_s"]) == (10, 1.2)  # 9 before the restart, 3 after it
    live.add(reading(16, 200))
    assert live._latest["requests_per_s"] == 20.8


def test_figures_as_the_api_gives_them():
    """Rates are of calls, not streams; None before the second reading, latency and batch size also without calls."""
    figures = watch.Figures(
        seconds=4,
        images=80,
        calls=12,
        failed_calls=2,
        failed_streams=7,
        p50_s=0.001,
        p99_s=0.002,
        mean_batch_size=10 / 3,
        queue_depth=3,
    )
    assert stats.as_json(figures) == {
        "window_s": 4,
        "requests_per_s": 3.0,
        "images_per_s": 20.0,
        "failures_per_s": 0.5,
        "latency_s": {"p50": 0.001, "p99": 0.002},
        "mean_batch_size": 3.333,
        "queue_depth": 3,
    }
    nothing = stats.as_json(watch.figures([reading(0, 100)]))
    assert (nothing["requests_per_s"], nothing["latency_s"]["p50"], nothing["mean_batch_size"]) == (None, None, None)


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
