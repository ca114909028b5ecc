"""The server's own latency and throughput of the last seconds, out of its metrics endpoint."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from digits_client import watch
from digits_web.problems import Problem

WINDOW_S = 10.0
"""Figures are of so many last seconds."""
FRESH_S = 0.5
"""The endpoint is not read again sooner, however many browsers ask."""


class Stats:
    """Reads the endpoint when somebody asks, and remembers the last seconds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._readings: deque[watch.Reading] = deque()
        self._latest: dict[str, Any] = {}
        self._lock = asyncio.Lock()

    async def latest(self) -> dict[str, Any]:
        """Return the figures of the last seconds; rates are None before the second reading.

        Raises:
            Problem: 503; the endpoint can't be read.
        """
        if not self._url:
            raise Problem(503, "The gateway was started without the address of a metrics endpoint.")
        async with self._lock:
            if not self._readings or time.monotonic() - self._readings[-1].at_s >= FRESH_S:
                try:
                    self.add(await asyncio.to_thread(watch.read, self._url))
                except (OSError, ValueError) as error:
                    self._readings.clear()
                    raise Problem(503, f"The metrics endpoint {self._url} can't be read: {error}") from error
            return {"source": self._url, **self._latest}

    def add(self, reading: watch.Reading) -> None:
        """Take a reading, and forget those before the window."""
        self._readings.append(reading)
        while reading.at_s - self._readings[0].at_s > WINDOW_S:
            self._readings.popleft()
        self._latest = as_json(watch.figures(self._readings))


def as_json(figures: watch.Figures) -> dict[str, Any]:
    """Return figures as the API gives them."""

    def rate(count: float) -> float | None:
        return round(count / figures.seconds, 3) if figures.seconds else None

    return {
        "window_s": round(figures.seconds, 3),
        "requests_per_s": rate(figures.calls),
        "images_per_s": rate(figures.images),
        "failures_per_s": rate(figures.failed_calls),
        "latency_s": {"p50": figures.p50_s, "p99": figures.p99_s},
        "mean_batch_size": None if figures.mean_batch_size is None else round(figures.mean_batch_size, 3),
        "queue_depth": round(figures.queue_depth),
    }
