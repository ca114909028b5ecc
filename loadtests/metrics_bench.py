"""What metrics cost a server: `python loadtests/metrics_bench.py`.

Scrapes of a server with one worker and with two; then, by turns, the throughput of a server and of one that neither
counts nor times its calls and batches. Servers have one CPU, h2load (Debian's nghttp2-client) another.
"""

from __future__ import annotations

import statistics
import time
import urllib.request

import pinned
import psutil

SCRAPES = 200
TURNS = 5
BLIND = """
from digits_server.__main__ import main
from digits_server.metrics import Metrics
Metrics.rpc = Metrics.batch = Metrics.predicted = lambda *_: lambda *_: None
main()
"""
"""A server that looks away."""


def cpu_s(command: str) -> float:
    """Return the CPU time of the children of this process whose command has this word, and of their children."""
    servers = [child for child in psutil.Process().children() if command in " ".join(child.cmdline())]
    every = [each for server in servers for each in (server, *server.children(recursive=True))]
    return sum(sum(each.cpu_times()[:2]) for each in every)


def scrapes(workers: int) -> None:
    """Scrape a server that has served."""
    with pinned.digits_server("grpcio", "digits-mlp", workers=workers) as (address, url):
        pinned.load(address, rows=1, clients=8, streams=8, seconds=1)
        before, times, size = cpu_s("digits_server"), [], 0
        for _ in range(SCRAPES):
            start = time.perf_counter()
            with urllib.request.urlopen(url, timeout=20) as page:  # noqa: S310 - our own address
                size = len(page.read())
            times.append((time.perf_counter() - start) * 1e3)
        cpu_ms = (cpu_s("digits_server") - before) / SCRAPES * 1e3
    p50_ms, p99_ms = statistics.median(times), statistics.quantiles(times, n=100)[-1]
    print(f"scrape, {workers} worker(s): {size:,} bytes, p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms, CPU {cpu_ms:.2f} ms")


def share(transport: str, rows: int, in_flight: int) -> None:
    """Compare throughput with and without metrics."""
    flags = [f"--models={pinned.MODELS}", f"--transport={transport}", "--max-queue=65536", "--log-level=warning"]
    flags += ["--port=0", "--metrics-port=0"]
    with pinned.running("-m", "digits_server", *flags) as seeing, pinned.running("-c", BLIND, *flags) as blind:
        rates: dict[str, list[float]] = {"seeing": [], "blind": []}
        for _ in range(TURNS):
            for name, (address, _url) in (("seeing", seeing), ("blind", blind)):
                run = pinned.load(address, rows=rows, clients=8, streams=in_flight // 8, seconds=2)
                rates[name].append(run.calls_per_s)
    real, without = (statistics.median(rates[name]) for name in ("seeing", "blind"))
    print(
        f"{transport}, {rows} image(s) a call, {in_flight} in flight: {real:,.0f} calls/s, "
        f"{without:,.0f} without metrics, which cost {1 - real / without:.1%}"
    )


if __name__ == "__main__":
    for count in (1, 2):
        scrapes(count)
    for name in ("grpcio", "native"):
        for rows, in_flight in ((1, 64), (64, 8)):
            share(name, rows, in_flight)
