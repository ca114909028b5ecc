"""What a server does for long: steady load at half of its capacity, and memory after many calls."""

from __future__ import annotations

import sys
from typing import Any

import click
import harness
from harness import Scenario

CALLS = Scenario("1 image", in_flight=64)


def measure(transport: str, seconds: float) -> dict[str, Any]:
    """Return a line of the table: latency at half load, memory after a tenth of the time at full load and after all."""
    with harness.digits_server(transport) as (address, url):
        capacity = harness.load(address, CALLS, 3).calls_per_s
        run = harness.load(address, CALLS, seconds, rate=capacity / 2)
        memory_mb = []
        for share in (0.1, 0.9):
            harness.load(address, CALLS, max(1, share * seconds))
            memory_mb.append(harness.metric(url, "process_resident_memory_bytes") / 1e6)
        harness.check(url)
        calls = harness.metric(url, "grpc_server_handled_total")
    return {
        "transport": transport,
        "capacity, calls/s": capacity,
        "p50 ms at half": run.p50_ms,
        "p99 ms at half": run.p99_ms,
        "longest ms": run.max_ms,
        "calls in all": calls,
        "MB": memory_mb[0],
        "MB, later": memory_mb[1],
        "grew by at most 5 %": "pass" if memory_mb[1] <= 1.05 * memory_mb[0] else "MISS",
    }


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Length of each of the two parts.")
@harness.transports_option
def main(seconds: float, transports: str) -> None:
    """Load a server for long; exit with 1 where its memory grows."""
    lines = [measure(transport, seconds) for transport in transports.split(",")]
    print(harness.table(lines))
    sys.exit(any(line["grew by at most 5 %"] == "MISS" for line in lines))


if __name__ == "__main__":
    main()
