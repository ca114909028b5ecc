"""What a server's metrics page says about the time between two looks at it: rates and quantiles."""

from __future__ import annotations

import http.client
import math
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

TIMEOUT_S = 5.0
METHODS = ("Classify", "ModelInfer")
"""Calls that count: those that classify, but for streams, which last as long as their callers like."""
CALLS, LATENCY = "grpc_server_handled_total", "grpc_server_handling_seconds_bucket"
_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)(?: \d+)?$", re.MULTILINE)  # the last is a time, which Prometheus adds
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Look:
    """What a page tells; all but `queue_depth` are totals since the server's start, and of all servers on the page."""

    at_s: float
    """When, on the monotonic clock."""
    calls: float
    """Calls that have ended."""
    failures: float
    """Those that did not end with OK."""
    by_bound_s: Mapping[float, float]
    """Calls that took at most so many seconds in the server."""
    images: float
    batches: float
    batched_images: float
    queue_depth: float
    """Images that wait."""


@dataclass(frozen=True)
class Interval:
    """What happened between two looks."""

    seconds: float
    """How far they are apart; with 0, the rates are None."""
    calls_per_s: float | None
    failures_per_s: float | None
    images_per_s: float | None
    p50_s: float | None
    """Half of the calls took at most so long in the server, in seconds; None if there were none."""
    p99_s: float | None
    """99 in 100 did."""
    mean_batch_size: float | None
    """None if there were no batches."""
    queue_depth: float
    """At the second look."""


def fetch(url: str) -> Look:
    """Return what the page at an address tells now.

    Raises:
        OSError: It can't be had.
        ValueError: `url` is not one of HTTP, or the page is not a server's.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r}; allowed are http:// and https:// addresses")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:  # noqa: S310 - checked above
            return look(str(page.read(), "utf-8"), time.monotonic())
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP is spoken there: {error!r}") from error


def look(page: str, at_s: float) -> Look:
    """Return what a page in Prometheus' text format tells.

    Raises:
        ValueError: It is not a server's.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    by_bound_s: defaultdict[float, float] = defaultdict(float)
    for name, text, value in _SAMPLE.findall(page):
        labels = dict(_LABEL.findall(text))
        if labels.get("grpc_method", METHODS[0]) not in METHODS:
            continue
        if name == LATENCY:
            by_bound_s[float(labels["le"])] += float(value)
        else:
            totals[name] += float(value)
        if name == CALLS and labels["grpc_code"] != "OK":
            totals["failures"] += float(value)
    if not by_bound_s:
        raise ValueError(f"there is no {LATENCY}")
    return Look(
        at_s,
        totals[CALLS],
        totals["failures"],
        by_bound_s,
        totals["digits_predictions_total"],
        totals["digits_batch_size_count"],
        totals["digits_batch_size_sum"],
        totals["digits_queue_depth"],
    )


def between(before: Look, after: Look) -> Interval:
    """Return what happened between two looks."""
    seconds, batches = after.at_s - before.at_s, after.batches - before.batches
    calls = {bound: count - before.by_bound_s.get(bound, 0) for bound, count in after.by_bound_s.items()}

    def rate(then: float, now: float) -> float | None:
        return (now - then) / seconds if seconds else None

    return Interval(
        seconds,
        rate(before.calls, after.calls),
        rate(before.failures, after.failures),
        rate(before.images, after.images),
        quantile(0.5, calls),
        quantile(0.99, calls),
        (after.batched_images - before.batched_images) / batches if batches else None,
        after.queue_depth,
    )


def quantile(share: float, by_bound_s: Mapping[float, float]) -> float | None:
    """Return how long that share of the calls took at most, in seconds; None if there are none.

    Within a bucket the calls are taken to be spread evenly, as by Prometheus' `histogram_quantile`. Of calls slower
    than the last bound but infinity that is all that is known.

    Args:
        share: 0 to 1.
        by_bound_s: Calls that took at most so many seconds, by the upper bounds of buckets, infinity among them.
    """
    rank = share * max(by_bound_s.values(), default=0)
    low = below = 0.0
    for bound, count in sorted(by_bound_s.items()):
        if count >= rank > 0:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return None
