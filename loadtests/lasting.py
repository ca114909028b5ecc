"""The benchmark's longer workloads: steady load, memory, workers, and how latency grows with load."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pinned
from bars import Bar, at_least, at_most

SLOW_S = 0.05
WITNESS = """
import os, sys, time
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
except OSError:
    pass  # then busy processes hold it up, too
last = time.time()
end = last + float(sys.argv[1])
while last < end:
    time.sleep(0.002)
    now = time.time()
    if now - last > 0.01:
        print(last, now)
    last = now
"""
"""Sleeps 2 ms again and again, before all other processes if it may, and tells when that took far longer: then the
machine did nothing, neither for it nor for anybody else on that CPU."""

Stalls = npt.NDArray[np.float64]
"""(n, 2) seconds since 1970: from, to."""


def total(page: str, name: str) -> float:
    """Return the sum of a metric's numbers, whatever their labels."""
    return sum(float(number) for number in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def steady(transport: str, capacity: float, seconds: int) -> list[Bar]:
    """Measure ten clients who together ask for half of what the server can do."""
    cpus = (pinned.SERVER_CPU, pinned.LOAD_CPU)
    witnesses = [
        subprocess.Popen(  # noqa: S603 - our own command
            ["taskset", "-c", cpu, sys.executable, "-c", WITNESS, str(seconds + 10)],  # noqa: S607
            stdout=subprocess.PIPE,
            text=True,
        )
        for cpu in cpus
    ]
    with pinned.digits_server(transport) as (address, _):
        run = pinned.load(address, rows=1, clients=10, streams=8, seconds=seconds, rate=capacity / 2)
    stalls = np.array("".join(witness.communicate()[0] for witness in witnesses).split(), np.float64).reshape(-1, 2)
    slow = run.took_s > SLOW_S
    ours = [
        took - _stalled(began, took, stalls) for began, took in zip(run.started_s[slow], run.took_s[slow], strict=True)
    ]
    workload = f"10 clients at half capacity, {seconds} s"
    unexplained = int(sum(took > SLOW_S for took in ours))
    return [
        at_most(f"{workload}: p99 us of p50", transport, run.p99_us, run.p50_us, 5),
        Bar(
            f"{workload}: calls over 50 ms, not the machine's",
            transport,
            unexplained,
            max(1, len(ours)),
            unexplained / max(1, len(ours)),
            "<= 0",
            not unexplained,
        ),
    ]


def _stalled(began: float, took: float, stalls: Stalls) -> float:
    """Return for how many seconds of a call the machine did nothing."""
    overlap = np.minimum(stalls[:, 1], began + took) - np.maximum(stalls[:, 0], began)
    return float(overlap.clip(0).max(initial=0))


def memory(transport: str, capacity: float, calls: int) -> list[Bar]:
    """Measure a server's memory after a tenth of so many calls, and after all."""
    seconds = max(1, round(calls / capacity))
    with pinned.digits_server(transport) as (address, metrics):
        sizes = []
        for share in (0.1, 0.9):
            pinned.load(address, rows=1, clients=8, streams=8, seconds=max(1, round(share * seconds)))
            sizes.append(total(pinned.page(metrics), "process_resident_memory_bytes") / 1e6)
        done = total(pinned.page(metrics), "digits_queue_seconds_count")
    workload = f"memory after {done:,.0f} calls: MB"
    return [
        at_most(f"{workload} of a tenth's", transport, sizes[1], sizes[0], 1.05),
        at_most(workload, transport, sizes[1], 150, 1),
    ]


def workers(transport: str, seconds: int) -> Bar:
    """Measure the CPU time of calls with one worker and with two, on two CPUs that the load shares."""
    costs = []
    for count in (1, 2):
        with pinned.digits_server(transport, workers=count, cpus=pinned.BOTH) as (address, metrics):
            before = pinned.page(metrics)
            pinned.load(address, rows=1, clients=16, streams=4, seconds=seconds, cpus=pinned.BOTH)
            after = pinned.page(metrics)
        used, calls = (
            total(after, name) - total(before, name)
            for name in ("process_cpu_seconds_total", "digits_queue_seconds_count")
        )
        costs.append(1e4 * used / calls)
    return at_most("2 workers: CPU s per 10,000 calls, of 1 worker's", transport, costs[1], costs[0], 1.1)


def deep(transport: str, model: str, best: float, seconds: int) -> Bar:
    """Measure a larger model against the images/s of bare onnxruntime's best batch."""
    with pinned.digits_server(transport, model) as (address, _):
        run = pinned.load(address, rows=1, clients=8, streams=8, seconds=seconds)
    return at_least(f"{model}, 64 in flight: images/s of bare", transport, run.calls_per_s, best, 0.85)


def latencies(address: str, capacity: float, seconds: int) -> list[dict[str, float]]:
    """Return how long calls take at rates from a tenth of the capacity to nearly all of it."""
    found = []
    for share in (0.25, 0.5, 0.75, 0.9):
        run = pinned.load(address, rows=1, clients=8, streams=64, seconds=seconds, rate=share * capacity)
        found.append({"offered": share * capacity, "p50_us": run.p50_us, "p99_us": run.p99_us})
    return found


def batch_sizes(page: str, model: str) -> dict[str, int]:
    """Return how many batches there were, by their size: the bucket's upper bound."""
    found = re.findall(rf'^digits_batch_size_bucket{{le="(\S+)",model="{model}"}} (\S+)$', page, re.MULTILINE)
    counts = [0, *(int(float(count)) for _, count in found)]
    sizes = {bound: after - before for (bound, _), before, after in zip(found, counts[:-1], counts[1:], strict=True)}
    return {bound: count for bound, count in sizes.items() if count}
