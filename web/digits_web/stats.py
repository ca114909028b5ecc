"""The server's own latency and throughput of the last seconds, out of its metrics endpoint."""

from __future__ import annotations

import asyncio
import http.client
import math
import time
import urllib.request
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from digits_web.problems import Problem

WINDOW_S = 10.0
"""Figures are of so many last seconds."""
FRESH_S = 0.5
"""The endpoint is not read again sooner, however many browsers ask."""
TIMEOUT_S = 5.0
METHODS = ("Classify", "ModelInfer")
"""RPCs that count: those that classify, but for streams, which last as long as their callers like."""
RPCS, LATENCY = "grpc_server_handled_total", "grpc_server_handling_seconds_bucket"
IMAGES, DEPTH = "digits_predictions_total", "digits_queue_depth"
BATCHES, BATCHED = "digits_batch_size_count", "digits_batch_size_sum"


@dataclass(frozen=True)
class Scrape:
    """What the endpoint tells at one time, summed over all servers that it tells of."""

    at_s: float
    """When, on the monotonic clock."""
    totals: Counter[str] = field(default_factory=Counter)
    """Samples by name, and RPCs that failed as `failures`."""
    buckets: Counter[float] = field(default_factory=Counter)
    """RPCs that took at most so many seconds in the server, by the upper bounds of the histogram's buckets."""


class Stats:
    """Scrapes the endpoint when somebody asks, and remembers the last seconds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._scrapes: deque[Scrape] = deque()
        self._lock = asyncio.Lock()

    async def latest(self) -> dict[str, Any]:
        """Return the figures of the last seconds; rates are None before the second scrape.

        Raises:
            Problem: 503; the endpoint can't be read.
        """
        if not self._url:
            raise Problem(503, "The gateway was started without the address of a metrics endpoint.")
        async with self._lock:
            if not self._scrapes or time.monotonic() - self._scrapes[-1].at_s >= FRESH_S:
                try:
                    self.add(await asyncio.to_thread(fetch, self._url))
                except (OSError, ValueError) as error:
                    self._scrapes.clear()
                    raise Problem(503, f"The metrics endpoint {self._url} can't be read: {error}") from error
            return {"source": self._url, **figures(self._scrapes[0], self._scrapes[-1])}

    def add(self, scrape: Scrape) -> None:
        """Take a scrape; forget those before the window, and all from before a restart of the server."""
        if self._scrapes and scrape.totals[RPCS] < self._scrapes[-1].totals[RPCS]:
            self._scrapes.clear()
        self._scrapes.append(scrape)
        while scrape.at_s - self._scrapes[0].at_s > WINDOW_S:
            self._scrapes.popleft()


def fetch(url: str) -> Scrape:
    """Return what the endpoint at an http:// or https:// address tells now.

    Raises:
        OSError: It can't be had.
        ValueError: It is not a Digits server's.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:  # noqa: S310 - the settings allow only HTTP
            return parse(str(page.read(), "utf-8"), time.monotonic())
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP is spoken there: {error!r}") from error


def parse(page: str, at_s: float) -> Scrape:
    """Return what a page in Prometheus' text format tells.

    Raises:
        ValueError: It is not a Digits server's.
    """
    scrape = Scrape(at_s)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("grpc_method", METHODS[0]) not in METHODS:
                continue
            if sample.name == LATENCY:
                scrape.buckets[float(sample.labels["le"])] += int(sample.value)
            elif sample.name in {RPCS, IMAGES, BATCHES, BATCHED, DEPTH}:
                scrape.totals[sample.name] += int(sample.value)
            if sample.name == RPCS and sample.labels["grpc_code"] != "OK":
                scrape.totals["failures"] += int(sample.value)
    if not scrape.buckets:
        raise ValueError(f"there is no {LATENCY}")
    return scrape


def figures(before: Scrape, after: Scrape) -> dict[str, Any]:
    """Return what happened between two scrapes, as the API gives it."""
    seconds = after.at_s - before.at_s
    gained, buckets = after.totals.copy(), after.buckets.copy()
    gained.subtract(before.totals)
    buckets.subtract(before.buckets)
    batches = gained[BATCHES]

    def rate(name: str) -> float | None:
        return round(gained[name] / seconds, 3) if seconds else None

    return {
        "window_s": round(seconds, 3),
        "requests_per_s": rate(RPCS),
        "images_per_s": rate(IMAGES),
        "failures_per_s": rate("failures"),
        "latency_s": {"p50": quantile(0.5, buckets), "p99": quantile(0.99, buckets)},
        "mean_batch_size": round(gained[BATCHED] / batches, 3) if batches else None,
        "queue_depth": after.totals[DEPTH],
    }


def quantile(share: float, buckets: Counter[float]) -> float | None:
    """Return how long that share of the RPCs took at most, in seconds, as `histogram_quantile`; None without RPCs.

    Of RPCs slower than the last bound but infinity, that bound is all that is known.
    """
    rank = share * max(buckets.values(), default=0)
    low, below = 0.0, 0
    for bound, count in sorted(buckets.items()):
        if count >= rank > 0:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return None
