"""The live figures: the last seconds of looks, and a real server's page."""

import httpx
from gateways import conforms, start_gateway

from digits_web import metrics, stats


def look(at_s, calls):
    return metrics.Look(at_s, calls, 0, {float("inf"): calls}, calls, calls, calls, 0)


def test_readings_leave_the_window_and_restarts_empty_it():
    """Figures are of the last ten seconds; when a server counts from zero again they start anew."""
    live = stats.Stats("http://x")
    for second in range(15):
        live._add(look(second, calls=100 + second))
    assert [each.at_s for each in live._looks] == list(range(4, 15))
    live._add(look(15, calls=1))
    assert [each.at_s for each in live._looks] == [15]


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
