"""What metrics, traces and log lines cost: `python loadtests/observe_bench.py`.

Scrapes of a server with one worker and with two; then, by turns, the throughput of a server and of one that neither
counts nor times its calls and batches. Servers have one CPU, h2load (Debian's nghttp2-client) another. A trace and a
log line are timed by themselves, in this process, and the fastest of several runs counts: that is too little to be seen
in a server's calls per second.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import statistics
import time
import timeit
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import click
import grpc
import pinned
from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from digits_server.inference.request import Outcome
from digits_server.rpc.access_log import access_log
from digits_server.rpc.tracing import Tracing

BLIND = """
from digits_server.__main__ import main
from digits_server.metrics.recorder import Metrics
Metrics.rpc = Metrics.batch = Metrics.predicted = lambda *_: lambda *_: None
main()
"""
"""A server that looks away."""
OK = grpc.StatusCode.OK


def scrapes(workers: int, count: int) -> None:
    """Scrape a server that has served."""
    with pinned.digits_server("grpcio", workers=workers) as (address, url):
        pinned.load(address, rows=1, clients=8, streams=8, seconds=1)
        cpu_s, times = pinned.metric(url, "process_cpu_seconds_total"), []
        for _ in range(count):
            start = time.perf_counter()
            size = len(pinned.page(url))
            times.append((time.perf_counter() - start) * 1e3)
        cpu_ms = (pinned.metric(url, "process_cpu_seconds_total") - cpu_s) / count * 1e3
    p50_ms, p99_ms = statistics.median(times), statistics.quantiles(times, n=100)[-1]
    print(f"scrape, {workers} worker(s): {size:,} bytes, p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms, CPU {cpu_ms:.2f} ms")


def share(transport: str, rows: int, streams: int, seconds: int, turns: int) -> None:
    """Compare throughput with and without metrics; 8 connections have so many calls in flight each."""
    rates: dict[str, list[float]] = {"seeing": [], "blind": []}
    with (
        pinned.digits_server(transport) as (seeing, _),
        pinned.digits_server(transport, program=("-c", BLIND)) as (blind, _),
    ):
        for _ in range(turns):
            for name, address in (("seeing", seeing), ("blind", blind)):
                run = pinned.load(address, rows=rows, clients=8, streams=streams, seconds=seconds)
                rates[name].append(run.calls_per_s)
    real, without = map(statistics.median, rates.values())
    print(
        f"{transport}, {rows} image(s) a call, {8 * streams} in flight: {real:,.0f} calls/s, "
        f"{without:,.0f} without metrics, which cost {1 - real / without:.1%}"
    )


def show(what: str, action: Callable[[], Any]) -> None:
    """Print the microseconds that an action takes at best."""
    print(f"{what}: {min(timeit.repeat(action, number=100, repeat=45)) / 100 * 1e6:.2f} us")


def access() -> None:
    """Time what a line for a call costs, as JSON."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter(["asctime", "levelname", "name", "message"]))
    logging.basicConfig(level="INFO", handlers=[handler])
    context: Any = SimpleNamespace(peer=lambda: "ipv4:127.0.0.1:50000")

    def call(observer: Callable[..., Any]) -> None:
        observer("s/m", None, context)(OK)

    for sample in (0.01, 1.0):
        show(f"access log: a call, at a sample of {sample}", partial(call, access_log(sample, None)))


async def traces() -> None:
    """Time what a call's spans cost."""
    logging.disable()  # nobody takes the traces
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    tracing, outcome = Tracing(), Outcome(["7"], 0, 1, 0.001, 0.0001, 32)

    def call(context: Any) -> None:
        end = tracing.rpc("s/m", None, context)
        if trace.get_current_span().is_recording():
            tracing.phases(trace.get_current_span(), "digits-mlp/1", time.monotonic(), outcome)
        end(OK)

    for what, flag in (("recorded", "01"), ("not recorded", "00")):
        metadata = (("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-{flag}"),)
        show(
            f"traces: a call that is {what}", partial(call, SimpleNamespace(invocation_metadata=lambda it=metadata: it))
        )
    os._exit(0)  # rather than wait for a collector


@click.command()
@click.option("--seconds", default=2, show_default=True, help="Length of each measurement, after a second of warm-up.")
@click.option("--turns", default=5, show_default=True, help="Measurements of each server, of which the median counts.")
@click.option("--scrapes", "count", default=200, show_default=True, help="Scrapes of each server.")
def main(seconds: int, turns: int, count: int) -> None:
    """Measure what it costs to be observed."""
    for workers in (1, 2):
        scrapes(workers, count)
    for transport in ("grpcio", "native"):
        for rows, streams in ((1, 8), (64, 1)):
            share(transport, rows, streams, seconds, turns)
    access()
    asyncio.run(traces())


if __name__ == "__main__":
    main()
