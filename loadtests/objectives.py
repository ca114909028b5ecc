"""Objectives of a load test: what was measured against what was wanted. Knows nothing of Locust."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Limits = Mapping[str, Mapping[str, float]]
"""Limits by workload and name; a name is `min_` or `max_` and the name of a measured figure."""
Figures = Mapping[str, Mapping[str, float]]
"""Measured figures by workload and name; NaN where nothing could be measured."""


@dataclass(frozen=True)
class Verdict:
    """One objective and how it went."""

    workload: str
    objective: str
    limit: float
    measured: float
    passed: bool


def read(file: Path) -> Limits:
    """Return the objectives in a TOML file.

    Raises:
        ValueError: A name says neither `min_` nor `max_`, or its value is no number.
    """
    limits: dict[str, dict[str, float]] = tomllib.loads(file.read_text())
    for workload, names in limits.items():
        for name, limit in names.items():
            if not name.startswith(("min_", "max_")) or not isinstance(limit, int | float):
                raise ValueError(f"{file}: [{workload}] {name} = {limit!r}: allowed are min_… and max_… with a number")
    return limits


def judge(limits: Limits, figures: Figures) -> list[Verdict]:
    """Return a verdict for each limit. What was not measured does not pass."""
    verdicts = []
    for workload, names in limits.items():
        for name, limit in names.items():
            measured = figures.get(workload, {}).get(name[4:], math.nan)
            passed = measured >= limit if name.startswith("min_") else measured <= limit
            verdicts.append(Verdict(workload, name, limit, measured, passed))
    return verdicts


def sigmas_above(wrong: int, images: int, share: float) -> float:
    """Return how far `wrong` of `images` lies above the `share` expected, in standard deviations of a binomial."""
    if images == 0:
        return math.nan
    excess = wrong - images * share
    deviation = math.sqrt(images * share * (1 - share))
    if deviation == 0:
        return math.inf if excess > 0 else 0.0
    return excess / deviation


def table(verdicts: Iterable[Verdict]) -> str:
    """Return the verdicts as lines for people."""
    lines = [f"{'workload':<12} {'objective':<24} {'limit':>9} {'measured':>10}"]
    lines += [
        f"{v.workload:<12} {v.objective:<24} {v.limit:>9g} {v.measured:>10.4g}  {'pass' if v.passed else 'FAIL'}"
        for v in verdicts
    ]
    return "\n".join(lines)
