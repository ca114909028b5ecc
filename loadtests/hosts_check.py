"""Compares the simulation with real hosts: one, two and three servers behind Envoy, each with a quarter of a CPU.

`PYTHONPATH=tests python loadtests/hosts_check.py`, as root, with h2load, iproute2, iptables and cgroups of version 1.
What a batch and a call cost is taken from one host with few calls in flight and with many; what two and three hosts
do is then predicted, and measured.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pinned
from namespaces import Namespace, network
from proxies import Envoy
from queueing import Costs
from simulate import fitted, without_pause

CPU, PERIOD_S = 0.25, 0.02
SECONDS, ROUNDS = 2, 3
FEW, MANY = 6, 60
"""Calls in flight."""
SET_UPS = ((1, "round_robin"), (2, "round_robin"), (3, "round_robin"), (3, "two_choices"))
ENVOYS = {"round_robin": "ROUND_ROBIN", "two_choices": "LEAST_REQUEST"}
"""What Envoy calls the policies."""


class Host(Namespace):
    """A server with `CPU` of a CPU."""

    def __init__(self, bridge: str, subnet: str, number: int) -> None:
        super().__init__(bridge, subnet, number)
        self._group = Path("/sys/fs/cgroup/cpu") / f"{bridge}-{number}"
        self._group.mkdir()
        (self._group / "cpu.cfs_period_us").write_text(f"{PERIOD_S * 1e6:.0f}")
        (self._group / "cpu.cfs_quota_us").write_text(f"{CPU * PERIOD_S * 1e6:.0f}")
        command = (sys.executable, "-m", "digits_server", f"--models={pinned.MODELS}", "--workers=1", "--host=0.0.0.0")
        self._server = subprocess.Popen([*self.exec, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
        assert self._server.stdout
        assert b"ready" in self._server.stdout.readline()  # what it measures of itself, it measures with a whole CPU
        for task in Path(f"/proc/{self._server.pid}/task").iterdir():
            (self._group / "tasks").write_text(task.name)

    def close(self) -> None:
        """End it."""
        super().close()
        self._server.wait()
        self._group.rmdir()


def measured() -> dict[tuple[int, str, int], list[tuple[float, float]]]:
    """Return calls a second and p50 in ms of each round, by hosts, policy and calls in flight."""
    runs = defaultdict[tuple[int, str, int], list[tuple[float, float]]](list)
    with network() as bridge, contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        hosts = []
        for number in range(3):
            hosts.append(Host(*bridge, number))
            stack.callback(hosts[-1].close)
        addresses = [f"{host.ip}:50051" for host in hosts]
        for turn in range(ROUNDS):
            for count, policy in SET_UPS:
                with Envoy((addresses * 2)[turn % 3 :][:count], Path(folder), ENVOYS[policy]) as envoy:
                    for callers in (FEW, MANY):
                        run = pinned.load(envoy.address, rows=1, clients=2, streams=callers // 2, seconds=SECONDS)
                        runs[count, policy, callers].append((run.calls_per_s, run.p50_us / 1e3))
    return runs


def main() -> None:
    """Measure, predict, and print both."""
    assert os.geteuid() == 0, "network namespaces want root"
    runs = measured()
    real = {key: tuple(map(statistics.median, zip(*found, strict=True))) for key, found in runs.items()}
    few, many = ((callers, real[1, "round_robin", callers][0]) for callers in (FEW, MANY))
    costs = fitted(Costs(150e-6, 400e-6, cpu=CPU, period_s=PERIOD_S), few, many)
    print(f"fitted to one host with {FEW} and with {MANY} calls in flight: {costs}")
    print("hosts  policy       in flight   calls/s (lowest, highest)  simulated     off   p50 ms  simulated     off")
    for (count, policy, callers), (rate, p50) in real.items():
        rates = sorted(each for each, _ in runs[count, policy, callers])
        expected, expected_p50 = without_pause(costs, count, policy, callers)
        print(
            f"{count:5d}  {policy:12s} {callers:9d} {rate:9,.0f} ({rates[0]:6,.0f}, {rates[-1]:6,.0f}) "
            f"{expected:11,.0f} {expected / rate - 1:+7.1%} {p50:8.1f} {expected_p50:10.1f} "
            f"{expected_p50 / p50 - 1:+7.1%}"
        )


if __name__ == "__main__":
    main()
