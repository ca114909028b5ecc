"""Rates and quantiles from two looks at a metrics page."""

import math

import pytest

from digits_client import _watch

LABELS = 'grpc_method="Classify",grpc_service="digits.v1.DigitClassifier"'


def page(ok, failed, *buckets):
    lines = [f'grpc_server_handled_total{{{LABELS},grpc_code="OK"}} {ok}']
    lines += [f'grpc_server_handled_total{{{LABELS},grpc_code="INTERNAL"}} {failed}']
    lines += ['grpc_server_handled_total{grpc_service="grpc.health.v1.Health",grpc_code="OK"} 1e9', "up 1.0"]
    lines += [
        f'grpc_server_handling_seconds_bucket{{{LABELS},le="{bound}"}} {count}'
        for bound, count in zip(("0.001", "0.01", "+Inf"), buckets, strict=True)
    ]
    return "\n".join(lines)


def test_interval():
    """Only what happened between the looks counts, and only our service."""
    before, after = _watch.look(page(1000, 5, 900, 1000, 1005)), _watch.look(page(1090, 15, 950, 1100, 1105))
    interval = _watch.between(before, after, 2.0)
    assert (interval.calls_per_s, interval.failures_per_s) == (50, 5)
    assert interval.p50_s == pytest.approx(0.001)
    assert interval.p99_s == pytest.approx(0.001 + 0.009 * 49 / 50)


@pytest.mark.parametrize(
    ("share", "buckets", "expected"),
    [
        (0.5, [(1, 0), (2, 10), (math.inf, 10)], 1.5),
        (0.99, [(1, 0), (2, 10), (math.inf, 100)], 2),  # all that is known: more than the last bound
        (0.5, [(1, 0), (math.inf, 0)], math.nan),
        (0.5, [], math.nan),
    ],
)
def test_quantile(share, buckets, expected):
    """Calls are spread evenly within a bucket; without calls there is no quantile."""
    assert _watch.quantile(share, buckets) == pytest.approx(expected, nan_ok=True)
