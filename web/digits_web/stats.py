"""The server's own latency and throughput, out of its metrics page. The only module that knows prometheus_client."""

from __future__ import annotations

import asyncio
import http.client
import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from digits_web.problems import Problem

WINDOW_S = 10.0
"""Figures are of so many last seconds."""
FRESH_S = 0.5
"""A page is not read again sooner, however many browsers ask."""
TIMEOUT_S = 2.0
LATENCY, RPCS = "grpc_server_handling_seconds", "grpc_server_handled"
IMAGES, SIZES, DEPTH = "digits_predictions", "digits_batch_size", "digits_queue_depth"


@dataclass(frozen=True)
class Sample:
    """One reading of the page; all but `queue_depth` are totals since the server started."""

    at_s: float
    """When, on the monotonic clock."""
    buckets: dict[float, float]
    """Classify calls by the upper bound of their time in seconds, each bucket with those below."""
    images: float
    failures: float
    """Classify calls that did not end with OK."""
    batches: float
    batched_images: float
    queue_depth: float


def parse(page: str, at_s: float) -> Sample:
    """Return what a metrics page says.

    Raises:
        ValueError: It is not one.
    """
    buckets: dict[float, float] = {}
    totals = dict.fromkeys(("images", "failures", "batches", "batched_images", "queue_depth"), 0.0)
    for family in text_string_to_metric_families(page):
        for name, labels, value, *_ in family.samples:
            if name == f"{LATENCY}_bucket" and labels["grpc_method"] == "Classify":
                bound = float(labels["le"])
                buckets[bound] = buckets.get(bound, 0) + value
            elif name == f"{RPCS}_total" and labels["grpc_method"] == "Classify" and labels["grpc_code"] != "OK":
                totals["failures"] += value
            elif name == f"{IMAGES}_total":
                totals["images"] += value
            elif name == f"{SIZES}_count":
                totals["batches"] += value
            elif name == f"{SIZES}_sum":
                totals["batched_images"] += value
            elif name == DEPTH:
                totals["queue_depth"] += value
    if not buckets:
        raise ValueError(f"there is no {LATENCY}")
    return Sample(at_s, buckets, **totals)


def quantile(share: float, buckets: dict[float, float]) -> float | None:
    """Return the time in seconds that `share` of the calls stayed below, as Prometheus' histogram_quantile does."""
    bounds = sorted(buckets)
    rank = share * buckets[bounds[-1]]
    if not rank:
        return None
    below, low = 0.0, 0.0
    for bound in bounds[:-1]:
        if buckets[bound] >= rank:
            return low + (bound - low) * (rank - below) / (buckets[bound] - below)
        below, low = buckets[bound], bound
    return low  # slower than the last bound: at least that


def summary(old: Sample, new: Sample) -> dict[str, Any]:
    """Return the figures of the time between two readings."""
    elapsed_s = new.at_s - old.at_s
    calls = {bound: new.buckets[bound] - old.buckets.get(bound, 0) for bound in new.buckets}
    batches = new.batches - old.batches
    return {
        "window_s": round(elapsed_s, 3),
        "requests_per_s": round(max(calls.values()) / elapsed_s, 3) if elapsed_s else None,
        "images_per_s": round((new.images - old.images) / elapsed_s, 3) if elapsed_s else None,
        "failures_per_s": round((new.failures - old.failures) / elapsed_s, 3) if elapsed_s else None,
        "latency_s": {"p50": quantile(0.5, calls), "p99": quantile(0.99, calls)},
        "mean_batch_size": round((new.batched_images - old.batched_images) / batches, 3) if batches else None,
        "queue_depth": new.queue_depth,
    }


class Stats:
    """Reads the metrics page when somebody asks, and remembers the last seconds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._samples: deque[Sample] = deque()
        self._lock = asyncio.Lock()

    async def latest(self) -> dict[str, Any]:
        """Return the figures of the last seconds; rates are None before the second reading.

        Raises:
            Problem: 503; the page can't be read.
        """
        if not self._url:
            raise Problem(503, "The gateway was started without the address of a metrics page.")
        async with self._lock:
            now_s = time.monotonic()
            if not self._samples or now_s - self._samples[-1].at_s >= FRESH_S:
                self._add(await self._read())
            return {"source": self._url, **summary(self._samples[0], self._samples[-1])}

    async def _read(self) -> Sample:
        try:
            page = await asyncio.to_thread(_get, self._url)
            return parse(page, time.monotonic())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._samples.clear()
            raise Problem(503, f"The metrics page {self._url} can't be read: {error}") from error

    def _add(self, sample: Sample) -> None:
        samples = self._samples
        if samples and max(sample.buckets.values()) < max(samples[-1].buckets.values()):
            samples.clear()  # the server has been started anew and counts from zero
        samples.append(sample)
        while sample.at_s - samples[0].at_s > WINDOW_S:
            samples.popleft()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:  # noqa: S310 - http or https, the command line checks
        return str(page.read().decode())
