"""What a new version must show before it may take another's place, added up and judged in one place.

Needs nothing that serves: with several workers, their supervisor is the judge.
"""

from __future__ import annotations

import operator
from dataclasses import astuple, dataclass
from typing import NamedTuple

from digits_server.config import Config

AGREEMENT = 0.98
"""Least share of the images for which a new version must give the digit that the version before it gives."""
COST = 1.5
"""Most CPU time it may take, over that of the version before it."""


class Trial(NamedTuple):
    """One version in one state of its files: other files are another trial."""

    name: str
    version: int
    files: tuple[object, ...]


@dataclass(frozen=True)
class Totals:
    """What copies of live batches have shown of a new version, beside the one that serves. Totals add up."""

    images: int = 0
    agreed: int = 0
    """Images for which both said the same digit."""
    variation: float = 0.0
    """Sum of the total variation distances between both distributions: 0 for the same, 1 for opposite ones."""
    live_s: float = 0.0
    """CPU time of the version that serves."""
    shadow_s: float = 0.0
    """CPU time of the new one, on the same batches and thread."""

    def __add__(self, other: Totals) -> Totals:
        return Totals(*map(operator.add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        if not self.images:
            return "has answered no images"
        return (
            f"agrees on {self.agreed / self.images:.2%} of {self.images} images, probabilities differ by "
            f"{self.variation / self.images:.4f}, costs {self.shadow_s / (self.live_s or 1.0):.2f} times as much"
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a new version takes over, and why."""

    is_promoted: bool
    reason: str


class Judge:
    """Adds up what is reported, and decides each trial once.

    Args:
        config: Says what must be shown.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._totals: dict[Trial, Totals] = {}
        self.verdicts: dict[Trial, Verdict | None] = {}
        """Of all trials; None: not decided yet."""

    def hear(self, trial: Trial, totals: Totals) -> Verdict | None:
        """Take a report, and return the verdict if it leads to one."""
        if self.verdicts.setdefault(trial, None):
            return None
        self._totals[trial] = self._totals.get(trial, Totals()) + totals
        self.verdicts[trial] = judge(self._totals[trial], self._config)
        return self.verdicts[trial]


def judge(totals: Totals, config: Config) -> Verdict | None:
    """Return the verdict on a new version; None: it has not been compared on enough images."""
    if totals.images < config.shadow_images:
        return None
    is_promoted = totals.agreed >= AGREEMENT * totals.images and totals.shadow_s <= COST * totals.live_s
    asked = f"asked are {AGREEMENT:.2%} and at most {COST:g} times"
    return Verdict(is_promoted, f"{totals}; {asked}")
