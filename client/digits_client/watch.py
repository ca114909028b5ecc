"""What a server's metrics say about the time between readings. Needs the extra `digits-client[watch]`."""

from __future__ import annotations

import http.client
import itertools
import math
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TIMEOUT_S = 5.0
CALLS = ("Classify", "ModelInfer")
"""Methods whose latency is a call's. Streams last as long as their callers like; their images count one by one."""
STREAMS = ("ClassifyStream", "ModelStreamInfer")
RPCS, LATENCY = "grpc_server_handled_total", "grpc_server_handling_seconds_bucket"
IMAGES, DEPTH = "digits_predictions_total", "digits_queue_depth"
BATCHES, BATCHED = "digits_batch_size_count", "digits_batch_size_sum"


@dataclass(frozen=True)
class Reading:
    """What the metrics of one or more servers say at one time."""

    at_s: float
    """When, on the monotonic clock."""
    series: Mapping[tuple[str, frozenset[tuple[str, str]]], Sample]
    """By name and labels, those that `Figures` are made of."""


@dataclass(frozen=True)
class Figures:
    """What happened from the first of some readings to the last."""

    seconds: float
    images: float
    calls: float
    """Calls that have ended; not streams."""
    failed_calls: float
    """Those that did not end with OK."""
    failed_streams: float
    p50_s: float | None
    """How long half of the calls took at most in the server; None without calls."""
    p99_s: float | None
    mean_batch_size: float | None
    """Images in a run of the model; None without runs."""
    queue_depth: float
    """Images that waited at the last reading."""


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
    series = {
        (sample.name, frozenset(sample.labels.items())): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in {IMAGES, DEPTH, BATCHES, BATCHED}
        or (sample.name == RPCS and sample.labels["grpc_method"] in CALLS + STREAMS)
        or (sample.name == LATENCY and sample.labels["grpc_method"] in CALLS)
    }
    if not any(name == LATENCY for name, _ in series):
        raise ValueError(f"there is no {LATENCY} of {CALLS[0]}: these are not a Digits server's metrics")
    return Reading(at_s, series)


def figures(readings: Sequence[Reading]) -> Figures:
    """Return what happened between readings, oldest first, also if servers were restarted meanwhile."""
    gained: defaultdict[str, float] = defaultdict(float)
    by_bound_s: defaultdict[float, float] = defaultdict(float)
    for before, after in itertools.pairwise(readings):
        for name, sample in after.series.items():
            was = before.series[name].value if name in before.series else 0
            gain = sample.value - (was if was <= sample.value else 0)  # what fell began anew, as for Prometheus' rate()
            if sample.name == LATENCY:
                by_bound_s[float(sample.labels["le"])] += gain
            elif sample.name == RPCS:
                kind = "calls" if sample.labels["grpc_method"] in CALLS else "streams"
                gained[kind] += gain
                gained[f"failed {kind}"] += gain if sample.labels["grpc_code"] != "OK" else 0
            else:
                gained[sample.name] += gain
    return Figures(
        seconds=readings[-1].at_s - readings[0].at_s,
        images=gained[IMAGES],
        calls=gained["calls"],
        failed_calls=gained["failed calls"],
        failed_streams=gained["failed streams"],
        p50_s=quantile(0.5, by_bound_s),
        p99_s=quantile(0.99, by_bound_s),
        mean_batch_size=gained[BATCHED] / gained[BATCHES] if gained[BATCHES] else None,
        queue_depth=sum(sample.value for (name, _), sample in readings[-1].series.items() if name == DEPTH),
    )


def lines(url: str, every_s: float) -> Iterator[str]:
    """Yield what has happened, as often as that, without an end; raise what `read` does."""
    for before, after in itertools.pairwise(_readings(url, every_s)):
        yield line(figures([before, after]))


def _readings(url: str, every_s: float) -> Iterator[Reading]:
    while True:
        yield read(url)
        time.sleep(every_s)


def line(figures: Figures) -> str:
    """Return figures on a line."""
    failures = figures.failed_calls + figures.failed_streams
    images, calls, failed = (count / figures.seconds for count in (figures.images, figures.calls, failures))
    p50, p99 = ("-" if s is None else f"{s * 1000:.3f}" for s in (figures.p50_s, figures.p99_s))
    return f"{images:9.1f} images/s  {calls:9.1f} calls/s  {failed:7.1f} failed/s  p50 {p50:>8} ms  p99 {p99:>8} ms"


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
