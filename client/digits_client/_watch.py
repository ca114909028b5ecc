"""What a server's metrics page says about the time between two looks at it: rates and quantiles."""

from __future__ import annotations

import math
import re
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass

SERVICE = "digits.v1.DigitClassifier"
_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Look:
    """Totals since the server's start."""

    calls: float
    """Calls of the service that have ended."""
    failures: float
    """Those that did not end with OK."""
    by_bound_s: dict[float, float]
    """Calls that took at most so many seconds."""


@dataclass(frozen=True)
class Interval:
    """What happened between two looks."""

    calls_per_s: float
    failures_per_s: float
    p50_s: float
    """Half of the calls took at most so long in the server, in seconds; NaN if there were none."""
    p99_s: float
    """99 in 100 did."""


def fetch(url: str) -> str:
    """Return the metrics page.

    Raises:
        OSError: It can't be had.
        ValueError: `url` is not one of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"--metrics: {url!r}; allowed are http:// and https:// addresses")
    with urllib.request.urlopen(url, timeout=5) as page:  # noqa: S310 - checked above
        return str(page.read(), "utf-8")


def look(page: str) -> Look:
    """Return the totals on a page in Prometheus' text format."""
    calls = failures = 0.0
    by_bound: dict[float, float] = {}
    for name, text, value in _SAMPLE.findall(page):
        labels = dict(_LABEL.findall(text))
        if labels.get("grpc_service") != SERVICE:
            continue
        if name == "grpc_server_handled_total":
            calls += float(value)
            failures += float(value) * (labels["grpc_code"] != "OK")
        elif name == "grpc_server_handling_seconds_bucket":
            bound = float(labels["le"])
            by_bound[bound] = by_bound.get(bound, 0) + float(value)
    return Look(calls, failures, by_bound)


def between(before: Look, after: Look, seconds: float) -> Interval:
    """Return what happened between two looks that are so many seconds apart."""
    buckets = [(bound, count - before.by_bound_s.get(bound, 0)) for bound, count in sorted(after.by_bound_s.items())]
    return Interval(
        (after.calls - before.calls) / seconds,
        (after.failures - before.failures) / seconds,
        quantile(0.5, buckets),
        quantile(0.99, buckets),
    )


def quantile(share: float, buckets: Iterable[tuple[float, float]]) -> float:
    """Return how long that share of the calls took at most, in seconds.

    Within a bucket the calls are taken to be spread evenly, as by Prometheus' `histogram_quantile`.

    Args:
        share: 0 to 1.
        buckets: Upper bounds, rising up to infinity, with the number of calls up to each.
    """
    buckets = list(buckets)
    total = buckets[-1][1] if buckets else 0
    if total <= 0:
        return math.nan
    low = below = 0.0
    for bound, count in buckets:
        if count >= share * total:
            return low if math.isinf(bound) else low + (bound - low) * (share * total - below) / (count - below)
        low, below = bound, count
    return math.nan
