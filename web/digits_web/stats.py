"""The server's own latency and throughput of the last seconds, out of its metrics page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from digits_web import metrics
from digits_web.problems import Problem

WINDOW_S = 10.0
"""Figures are of so many last seconds."""
FRESH_S = 0.5
"""A page is not read again sooner, however many browsers ask."""


class Stats:
    """Reads the metrics page when somebody asks, and remembers the last seconds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._looks: deque[metrics.Look] = deque()
        self._lock = asyncio.Lock()

    async def latest(self) -> dict[str, Any]:
        """Return the figures of the last seconds; rates are None before the second reading.

        Raises:
            Problem: 503; the page can't be read.
        """
        if not self._url:
            raise Problem(503, "The gateway was started without the address of a metrics page.")
        async with self._lock:
            if not self._looks or time.monotonic() - self._looks[-1].at_s >= FRESH_S:
                self._add(await self._read())
            figures = metrics.between(self._looks[0], self._looks[-1])
        return {
            "source": self._url,
            "window_s": round(figures.seconds, 3),
            "requests_per_s": _rounded(figures.calls_per_s),
            "images_per_s": _rounded(figures.images_per_s),
            "failures_per_s": _rounded(figures.failures_per_s),
            "latency_s": {"p50": figures.p50_s, "p99": figures.p99_s},
            "mean_batch_size": _rounded(figures.mean_batch_size),
            "queue_depth": figures.queue_depth,
        }

    async def _read(self) -> metrics.Look:
        try:
            return await asyncio.to_thread(metrics.fetch, self._url)
        except (OSError, ValueError) as error:
            self._looks.clear()
            raise Problem(503, f"The metrics page {self._url} can't be read: {error}") from error

    def _add(self, look: metrics.Look) -> None:
        if self._looks and look.calls < self._looks[-1].calls:
            self._looks.clear()  # the server has been started anew and counts from zero
        self._looks.append(look)
        while look.at_s - self._looks[0].at_s > WINDOW_S:
            self._looks.popleft()


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 3)
