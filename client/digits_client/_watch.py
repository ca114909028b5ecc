"""What a server's metrics say about the time between two readings. Needs the extra `digits-client[watch]`."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 5.0
CALLS = ("Classify", "ModelInfer")
"""Methods whose latency is a call's. Streams last as long as their callers like; their images count one by one."""
STREAMS = ("ClassifyStream", "ModelStreamInfer")


@dataclass(frozen=True)
class Reading:
    """Totals since the server's start, of all servers that the metrics are of."""

    at_s: float
    """When, on the monotonic clock."""
    images: float
    calls: float
    """Calls that have ended; not streams."""
    failures: float
    """Calls and streams that did not end with OK."""
    by_bound_s: Mapping[float, float]
    """Calls that took at most so many seconds in the server."""


def read(url: str) -> Reading:
    """Return what the metrics at an address say now.

    Raises:
        OSError: They can't be had.
        ValueError: `url` is not one of HTTP, or the metrics are not a Digits server's.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r}; allowed are http:// and https:// addresses")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:  # noqa: S310 - checked above
            return parse(str(page.read(), "utf-8", "replace"), time.monotonic())
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:  # its own text is that of the exception within
        raise OSError(getattr(error.reason, "strerror", None) or error.reason) from error
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP is spoken there: {error!r}") from error


def parse(text: str, at_s: float) -> Reading:
    """Return what metrics in Prometheus' text format say.

    Raises:
        ValueError: They are not a Digits server's.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    by_bound_s: defaultdict[float, float] = defaultdict(float)
    families = list(text_string_to_metric_families(text))
    if not any(family.name == "digits_predictions" for family in families):
        raise ValueError("there is no digits_predictions_total: these are not a Digits server's metrics")
    for sample in (sample for family in families for sample in family.samples):
        method = sample.labels.get("grpc_method", "")
        if sample.name == "digits_predictions_total":
            totals["images"] += sample.value
        elif sample.name == "grpc_server_handling_seconds_bucket" and method in CALLS:
            by_bound_s[float(sample.labels["le"])] += sample.value
        elif sample.name == "grpc_server_handled_total" and method in CALLS + STREAMS:
            totals["calls"] += sample.value if method in CALLS else 0
            totals["failures"] += sample.value if sample.labels["grpc_code"] != "OK" else 0
    return Reading(at_s, totals["images"], totals["calls"], totals["failures"], by_bound_s)


def lines(url: str, every_s: float) -> Iterator[str]:
    """Yield what has happened, as often as that, without an end; raise what `read` does."""
    before = read(url)
    while True:
        time.sleep(every_s)
        after = read(url)
        yield describe(before, after)
        before = after


def describe(before: Reading, after: Reading) -> str:
    """Return what happened between two readings, on a line.

    Where a total fell, the server was started anew, and all of it has happened since, as for Prometheus' `rate`.
    """
    if after.images < before.images or after.calls < before.calls or after.failures < before.failures:
        before = Reading(before.at_s, 0, 0, 0, {})
    calls = {bound: count - before.by_bound_s.get(bound, 0) for bound, count in after.by_bound_s.items()}
    p50, p99 = ("-" if s is None else f"{s * 1000:.3f}" for s in (quantile(0.5, calls), quantile(0.99, calls)))
    images, requests, failures = (
        (getattr(after, name) - getattr(before, name)) / (after.at_s - before.at_s)
        for name in ("images", "calls", "failures")
    )
    return (
        f"{images:9.1f} images/s  {requests:9.1f} calls/s  {failures:7.1f} failed/s  p50 {p50:>8} ms  p99 {p99:>8} ms"
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
