"""Compares a new version with the one that serves, on recent images of callers, before it may take over.

Each process decides by itself, on the images that it has seen.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from digits_server.inference.engine import LOW_CONFIDENCE, PIXELS, Engine, Images
from digits_server.models.package import Package

LEAST_AGREEMENT = 0.98
"""Share of the images for which a new version must give the class that the serving one gives."""
MORE_ABSTENTIONS = 0.02
"""By how much its share of abstentions may be above that of the serving one."""
MOST_COST = 2.0
"""How many times as long it may take for an image, in the serving one's best batches."""
RECENT_IMAGES = 1000
"""Images that a new version is compared on."""
TURNS = 10
"""Pairs of runs to tell what they cost."""
BATCH = 64
"""Images compared at once."""


class RecentImages:
    """The last images that a model has answered, at least `size` of them once there have been so many.

    One thread at a time may record; any may read.

    Args:
        size: Number of images; 0: none are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._batches: deque[Images] = deque()

    def record(self, images: Sequence[Images]) -> None:
        """Remember images that are being answered. They are not copied."""
        if not self._size:
            return
        for rows in images:
            self._batches.append(rows[-self._size :])
            self._count += len(self._batches[-1])
        while self._count - len(self._batches[0]) >= self._size:
            self._count -= len(self._batches.popleft())

    def __call__(self) -> list[Images]:
        """Return the images, oldest first: arrays of (n, 784)."""
        return list(self._batches)  # in one step: nothing is recorded meanwhile


@dataclass(frozen=True)
class Comparison:
    """What a new version shows beside the one that serves."""

    images: int
    agreement: float
    """Share of the images to which both give the same class."""
    abstentions: float
    """Share of the images that the new version abstains on."""
    live_abstentions: float
    """The same of the one that serves."""
    cost: float
    """Time of the new one over that of the other."""

    @property
    def is_good(self) -> bool:
        """Whether the new version may take over. Without images nothing speaks against it but its cost."""
        return (
            self.agreement >= LEAST_AGREEMENT
            and self.abstentions <= self.live_abstentions + MORE_ABSTENTIONS
            and self.cost <= MOST_COST
        )

    def __str__(self) -> str:
        return (
            f"on {self.images} recent images it agrees on {self.agreement:.2%} (least: {LEAST_AGREEMENT:.0%}), "
            f"abstains on {self.abstentions:.2%} (most: {self.live_abstentions + MORE_ABSTENTIONS:.2%}), and costs "
            f"{self.cost:.2f} times as much (most: {MOST_COST:g})"
        )


def compare(live: Package, new: Package, recent: Sequence[Images], rest: float = 0.0) -> Comparison:
    """Return what recent images show. Takes a while: not for the event loop's thread.

    Args:
        live: The version that serves.
        new: Another one with the same labels.
        recent: Arrays of (n, 784) images.
        rest: Pause after each batch, over its length: how much of the CPU is left to others.

    Raises:
        Exception: Whatever the new version raises on such images.
    """
    images = agreed = abstained = live_abstained = 0
    batch: list[Images] = []
    for at, rows in enumerate(recent, 1):
        batch.append(rows)
        if sum(map(len, batch)) < BATCH and at < len(recent):
            continue
        start = time.perf_counter()
        expected, answers = live.engine.predict(batch), new.engine.predict(batch)
        images += len(expected)
        agreed += int(((answers.digits == expected.digits) & np.isfinite(answers.confidences)).sum())
        abstained += int(((answers.flags & LOW_CONFIDENCE) > 0).sum())
        live_abstained += int(((expected.flags & LOW_CONFIDENCE) > 0).sum())
        batch = []
        time.sleep(rest * (time.perf_counter() - start))
    return Comparison(
        images,
        agreed / images if images else 1.0,
        abstained / max(images, 1),
        live_abstained / max(images, 1),
        _cost(live, new, rest),
    )


def _cost(live: Package, new: Package, rest: float) -> float:
    """Return the time of a run of the new version over that of the other: the median of the ratios of `TURNS` pairs.

    Each one's cost curve is of the time when it was loaded, with the machine as busy as it was then; the runs of a pair
    come one after the other, so that both find it alike.
    """
    images = [np.zeros((live.cost.best_batch_size(), PIXELS), np.uint8)]

    def run(engine: Engine) -> float:
        start = engine.clock()
        engine.predict(images)
        seconds = engine.clock() - start
        time.sleep(rest * seconds)
        return seconds

    return statistics.median(run(new.engine) / run(live.engine) for _ in range(TURNS))
