"""How far what is sent is from what a model was trained on, out of nothing but counts.

The measure is the population stability index, sum (p - q) ln(p / q) over buckets, p being a bucket's share of the
images of late, q its share of the training images. Below 0.1 nothing has changed, above 0.25 much has, goes the rule of
thumb (N. Siddiqi, Credit Risk Scorecards, 2006). Of n images of the very training distribution the index is
(buckets - 1) / n on average; that much is taken off, so that a quiet service shows 0 however few ask.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

WINDOW_S = 600.0
"""The images of late are those of so many seconds,"""
LEAST = 5000
"""but at least so many. Fewer may be the hands of a few: 1,000 of the MNIST test images in a row, which are of some ten
writers, show up to 0.43, and 5,000 up to 0.09."""
STEPS = 20
"""How finely the window moves: by this part of the time and of the images."""
RARE = 0.01
"""Buckets with a smaller share of the training images are joined with their neighbours: a ratio of next to nothing to
next to nothing says nothing."""


def reference(metadata: Mapping[str, str], bounds: Sequence[float]) -> dict[str, list[float]]:
    """Return what a model package says of the images it was trained on: shares by feature, then by bucket.

    Args:
        metadata: The package's; `digits.reference` holds a histogram of mean ink and the shares of the classes.
        bounds: Upper bounds of the buckets of ink, except the last one's.
    """
    found = json.loads(metadata.get("digits.reference", "{}"))
    if "shares" not in found.get("ink_histogram", {}) or "class_shares" not in found:
        return {}
    edges, shares = found["ink_histogram"]["edges"], found["ink_histogram"]["shares"]
    below = [0.0, *accumulate(shares)]

    def share_below(ink: float) -> float:
        if ink <= edges[0]:
            return 0.0
        for (low, high), (start, end) in zip(pairwise(edges), pairwise(below), strict=True):
            if ink <= high:
                return float(start + (end - start) * (ink - low) / (high - low))
        return 1.0

    return {
        "ink": [high - low for low, high in pairwise([0.0, *map(share_below, bounds), 1.0])],
        "class": found["class_shares"],
    }


def index(expected: Sequence[float], counts: Sequence[float]) -> float:
    """Return the population stability index of counts by bucket, less what chance makes of it.

    Args:
        expected: Share of each bucket, adding up to 1.
        counts: Observations in each bucket, at least one in all.
    """
    buckets: list[list[float]] = []
    for share, count in zip(expected, counts, strict=True):
        if buckets and min(share, buckets[-1][0]) < RARE:
            buckets[-1][0] += share
            buckets[-1][1] += count
        else:
            buckets.append([share, count])
    total = sum(counts) + len(buckets) / 2  # half an observation more in each bucket: no logarithm of 0
    drift = sum((p - q) * math.log(p / q) for q, p in ((share, (count + 0.5) / total) for share, count in buckets))
    return max(0.0, drift - (len(buckets) - 1) / total)


class Window:
    """The counts of late, out of ever growing ones."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, list[float]]] = deque()

    def latest(self, now: float, counts: list[float]) -> list[float]:
        """Return how many of `counts`, which are totals since the start, are new enough; [] if those are too few."""
        past, total = self._past, sum(counts)
        if not past:
            past.append((now, [0.0] * len(counts)))
        elif now - past[-1][0] >= WINDOW_S / STEPS and total - sum(past[-1][1]) >= LEAST / STEPS:
            past.append((now, counts))
        while len(past) > 1 and now - past[1][0] >= WINDOW_S and total - sum(past[1][1]) >= LEAST:
            past.popleft()
        new = [count - before for count, before in zip(counts, past[0][1], strict=True)]
        return new if sum(new) >= LEAST else []


class Drift:
    """Follows several features of several models. May be asked on any thread.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str], Window] = {}
        self._lock = threading.Lock()

    def __call__(self, model: str, feature: str, expected: Sequence[float], counts: list[float]) -> float | None:
        """Return the index of the images of late; None as long as they are too few.

        Args:
            model: Whose input.
            feature: Which property of it.
            expected: Share of each bucket among the training images.
            counts: Images in each bucket since the start.
        """
        with self._lock:
            latest = self._windows.setdefault((model, feature), Window()).latest(self._clock(), counts)
        return index(expected, latest) if latest else None
