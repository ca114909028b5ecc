"""Shapes of the load, beside the steady one that Locust itself knows; each has stages that are measured apart."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import report
from locust import LoadTestShape
from locust.env import Environment
from locust.stats import calculate_response_time_percentile, diff_response_time_dicts

SETTLE_S = 4.0
"""Before a stage is measured: users come, and workers report to their master every three seconds."""
DEFAULT_S = 60
LEVELS: list[dict[str, Any]] = []
"""What was measured in the last run: one entry for each stage."""


@dataclass(frozen=True)
class Stage:
    """A part of a shape: so many users, for so long."""

    name: str
    users: int
    length_s: float


def memory_mb(url: str) -> float:
    """Return the memory of all processes of a server, by its metrics page."""
    with urllib.request.urlopen(url, timeout=20) as page:  # noqa: S310 - our own address
        found = re.findall(r"^process_resident_memory_bytes(?:{.*})? (\S+)$", page.read().decode(), re.MULTILINE)
    return sum(map(float, found)) / 1e6


class Snapshot:
    """All that Locust has counted up to now."""

    def __init__(self, environment: Environment) -> None:
        self.at_s = time.perf_counter()
        self.counts = {
            entry.name: (entry.num_requests, entry.num_failures, dict(entry.response_times))
            for entry in environment.stats.entries.values()
        }

    def since(self, earlier: Snapshot) -> dict[str, dict[str, float]]:
        """Return the figures of the time between, by workload."""
        figures = {}
        for name, now in self.counts.items():
            then = earlier.counts.get(name, (0, 0, {}))
            calls, failures = now[0] - then[0], now[1] - then[1]
            if calls:
                between = diff_response_time_dicts(now[2], then[2])
                figures[name] = {
                    "rate": (calls - failures) / (self.at_s - earlier.at_s),
                    "error_share": failures / calls,
                    **{f"p{p}_ms": calculate_response_time_percentile(between, calls, p / 100) for p in (50, 95, 99)},
                }
        return figures


class Stages(LoadTestShape):
    """Stages that share the run time; `--users` is the most there are at once."""

    abstract = True
    use_common_options = True

    def stages(self, users: int, run_time_s: float) -> list[Stage]:
        """Return the stages."""
        raise NotImplementedError

    def is_enough(self) -> bool:
        """Return whether the levels measured so far tell what the run is for."""
        return False

    def reset_time(self) -> None:
        """Begin anew."""
        super().reset_time()
        options: Any = self.runner and self.runner.environment.parsed_options
        self._stages = self.stages(options.num_users or 1, options.run_time or DEFAULT_S)
        self._begin_s = 0.0
        self._first: Snapshot | None = None
        LEVELS.clear()

    def tick(self) -> tuple[int, float] | None:
        """Return the users wanted now and how many may come in a second; None: the run is over."""
        environment: Any = self.runner and self.runner.environment
        spent_s = self.get_run_time() - self._begin_s
        if self._first is None and spent_s >= SETTLE_S:
            self._first = Snapshot(environment)
        elif self._first and spent_s >= max(self._stages[0].length_s, 2 * SETTLE_S):
            stage = self._stages.pop(0)
            level = {"stage": stage.name, "users": stage.users, "figures": Snapshot(environment).since(self._first)}
            if url := environment.parsed_options.server_metrics:
                level["memory_mb"] = memory_mb(url)
            LEVELS.append(level)
            self._begin_s += spent_s
            self._first = None
            if not self._stages or self.is_enough():
                return None
        return self._stages[0].users, 100


class Ramp(Stages):
    """Users double until they only wait longer and get no more done."""

    def stages(self, users: int, run_time_s: float) -> list[Stage]:
        """Return stages of 1, 2, 4, … users."""
        counts = [2**n for n in range(users.bit_length())]
        return [Stage(f"{count} users", count, run_time_s / len(counts)) for count in counts]

    def is_enough(self) -> bool:
        """Return whether more users get no more done."""
        return report.is_flat(LEVELS)


class Spike(Stages):
    """A tenth of the users, suddenly all of them for a fifth of the time, a tenth again."""

    def stages(self, users: int, run_time_s: float) -> list[Stage]:
        """Return the three stages."""
        few = max(1, users // 10)
        parts = ("before", few, 0.4), ("spike", users, 0.2), ("after", few, 0.4)
        return [Stage(name, count, share * run_time_s) for name, count, share in parts]


class Soak(Stages):
    """All users all the time, measured in ten parts: what creeps shows in the last ones."""

    def stages(self, users: int, run_time_s: float) -> list[Stage]:
        """Return ten equal stages."""
        return [Stage(f"part {n}", users, run_time_s / 10) for n in range(1, 11)]
