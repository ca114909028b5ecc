"""What a server does when it is offered three times what it can do.

First h2load finds the capacity, with callers who wait for answers; then it offers a multiple of that, whatever comes
back, while a probe makes a few calls of its own and notes how long which outcome took. Goodput is what the server
counts as answered.
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import grpc
import harness
import numpy as np
from harness import Scenario

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

QUEUE = 4096
"""Images that may wait."""
PROBES_PER_S = 10
PROBE_DEADLINE_S = 10.0
Calls = list[tuple[str, float, float]]
"""Of a probe: the outcome of each call, when it ended, and the seconds it took."""


async def probe(address: str, rows: int, seconds: float) -> Calls:
    """Make calls at a steady rate for so long, whatever becomes of them."""
    request = pb.ClassifyRequest(pixels=bytes(784 * rows))
    calls: Calls = []

    async def call(stub: pb_grpc.DigitClassifierAsyncStub) -> None:
        start = time.monotonic()
        try:
            await stub.Classify(request, timeout=PROBE_DEADLINE_S)
            outcome = "OK"
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
        calls.append((outcome, time.monotonic(), time.monotonic() - start))

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as tasks:
        stub: Any = pb_grpc.DigitClassifierStub(channel)
        for _ in range(round(seconds * PROBES_PER_S)):
            tasks.create_task(call(stub))
            await asyncio.sleep(1 / PROBES_PER_S)
    return calls


def p99_ms(calls: Calls, outcome: str) -> float:
    """Return the 99th percentile of an outcome's times; 0 if it never was."""
    return 1000 * float(np.percentile([took for ended, _, took in calls if ended == outcome] or [0.0], 99))


def measure(address: str, url: str, scenario: Scenario, factor: float, seconds: float) -> dict[str, float]:
    """Return what was measured at one server."""

    def answered() -> float:
        return harness.metric(url, "grpc_server_handled_total", grpc_code="OK", grpc_method="Classify")

    capacity = harness.load(address, scenario, min(4, seconds)).calls_per_s
    idle = asyncio.run(probe(address, scenario.rows, 2))
    memory = harness.metric(url, "process_resident_memory_bytes")
    many = Scenario("overload", scenario.rows, 8 * 4096)
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(harness.load, address, many, seconds, rate=factor * capacity)
        time.sleep(2)  # h2load warms up for one
        before, start = answered(), time.monotonic()
        busy = asyncio.run(probe(address, scenario.rows, seconds - 2))
        goodput = (answered() - before) / (time.monotonic() - start)
        peak = harness.metric(url, "process_resident_memory_bytes")
        loading.result()
    end = time.monotonic()
    after = asyncio.run(probe(address, scenario.rows, min(4, seconds)))
    slow_s = 3 * p99_ms(idle, "OK") / 1000 + 0.01
    late = [ended - end for outcome, ended, took in after if outcome != "OK" or took > slow_s]
    return {
        "capacity": capacity,
        "goodput": goodput,
        "full queue ms": 1000 * QUEUE / scenario.rows / capacity,
        "admitted p99 ms": p99_ms(busy, "OK"),
        "refused p99 ms": p99_ms(busy, "RESOURCE_EXHAUSTED"),
        "memory MB": (peak - memory) / 1e6,
        "recovery s": max(late, default=0.0),
    }


def judge(transport: str, result: dict[str, float]) -> list[dict[str, Any]]:
    """Return the lines of the table, each with what is wanted."""
    bars = {
        "goodput": (">=", 0.85 * result["capacity"]),
        "admitted p99 ms": ("<=", 2 * result["full queue ms"]),
        "refused p99 ms": ("<=", 20.0),
        "memory MB": ("<=", 256.0),
        "recovery s": ("<=", 2.0),
    }
    return [
        {
            "transport": transport,
            "what": name,
            "measured": result[name],
            "wanted": f"{sign} {bar:.3g}",
            "verdict": "pass" if (result[name] >= bar if sign == ">=" else result[name] <= bar) else "MISS",
        }
        for name, (sign, bar) in bars.items()
    ]


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Length of the overload.")
@click.option("--factor", default=3.0, show_default=True, help="What is offered, as a multiple of the capacity.")
@click.option("--model", default="digits-cnn", show_default=True, help="Model to serve.")
@click.option("--rows", default=256, show_default=True, help="Images in a call.")
@harness.transports_option
def main(seconds: float, factor: float, model: str, rows: int, transports: str) -> None:
    """Offer a server more than it can do, and judge what becomes of it; exit with 1 where a bar is missed."""
    lines = []
    for transport in transports.split(","):
        with harness.digits_server(transport, model, flags=(f"--max-queue={QUEUE}",)) as (address, url):
            scenario = Scenario("overload", rows, 8, model)
            lines += judge(transport, measure(address, url, scenario, factor, seconds))
    print(harness.table(lines))
    sys.exit(any(line["verdict"] == "MISS" for line in lines))


if __name__ == "__main__":
    main()
