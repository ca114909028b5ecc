"""What one core serves, beside what the stack and onnxruntime would allow: `make bench`.

The server is pinned to one CPU, h2load (Debian's nghttp2-client) to another, and what is compared is measured in this
one run: the server, a server with empty handlers on the same transport, and bare onnxruntime. L, the limit, is
the time of an empty call plus that of onnxruntime for the same images, in series. Prints a table with the bars; writes
bench.json and bench.png.
"""

from __future__ import annotations

import itertools
import json
import platform
import shutil
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import lasting
import matplotlib as mpl
import mnist
import numpy as np
import onnxruntime as ort
import pinned
from bars import Bar, at_least, at_most, show
from pinned import HERE, MODELS, digits_server, empty_server, load, refused

mpl.use("Agg")
import matplotlib.pyplot as plt

DEEP = "digits-cnn"
DEEP_BATCHES = (1, 4, 16, 64)
CALLS_IN_FLIGHT_64 = "1 image, 64 in flight: calls/s"


def bare_seconds(model: str, rows: int) -> float:
    """Return the seconds of one run of bare onnxruntime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = max((MODELS / model).glob("*/model.onnx"), key=lambda file: int(file.parent.name))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: mnist.load()[0][:rows].astype(np.float32) / 255}
    ticks = [time.perf_counter()]
    while ticks[-1] - ticks[0] < 0.5:
        session.run(None, feed)
        ticks.append(time.perf_counter())
    return statistics.median(after - before for before, after in itertools.pairwise(ticks))


def measure(transport: str, model: str, seconds: int) -> tuple[list[Bar], dict[str, Any]]:
    """Measure one transport: the bars, and what is only drawn."""
    bars = []
    with digits_server(transport, model) as (address, metrics):
        many = load(address, rows=1, clients=8, streams=8, seconds=seconds)
        sizes = lasting.batch_sizes(pinned.page(metrics), model)
        latencies = lasting.latencies(address, many.calls_per_s, seconds)
        lone = load(address, rows=1, clients=1, streams=1, seconds=seconds)
        batches = {rows: load(address, rows=rows, clients=8, streams=1, seconds=seconds) for rows in (64, 256)}
        streamed = load(address, rows=1, clients=1, streams=1, seconds=seconds, stream=True)
        if failed := refused(metrics):
            raise click.ClickException(f"{failed} calls were not answered with OK")
    with empty_server(transport, 1) as (address, _):
        empty = load(address, rows=1, clients=8, streams=8, seconds=seconds)
        empty_lone = load(address, rows=1, clients=1, streams=1, seconds=seconds)
        echo = load(address, rows=1, clients=1, streams=1, seconds=seconds, stream=True)
    share = 0.90 if transport == "grpcio" else 0.65
    bars.append(at_least(CALLS_IN_FLIGHT_64, transport, many.calls_per_s, empty.calls_per_s, share))
    added_us = lone.p50_us - empty_lone.p50_us
    bars.append(at_most("1 image, alone: us added to p50", transport, added_us, 60, 1))
    bars.append(at_most("1 image, alone: p99 us of an empty call's", transport, lone.p99_us, empty_lone.p99_us, 2))
    for rows, run in batches.items():
        with empty_server(transport, rows) as (address, _):
            empty_call_s = 1 / load(address, rows=rows, clients=8, streams=1, seconds=seconds).calls_per_s
        limit = rows / (empty_call_s + bare_seconds(model, rows))
        bars.append(
            at_least(
                f"{rows} images, 8 in flight: images/s of L",
                transport,
                rows * run.calls_per_s,
                limit,
                0.80 if rows == 64 else 0.85,
            )
        )
    if transport == "grpcio":
        bars.append(at_least("stream: messages/s of an echo", transport, streamed.calls_per_s, echo.calls_per_s, 0.85))
        bars.append(at_least("stream: messages/s of unary", transport, streamed.calls_per_s, many.calls_per_s, 1.5))
    return bars, {"latencies": latencies, "batch_sizes": sizes}


def last(transport: str, capacity: float, best: float, *, seconds: int, steady_s: int, calls: int) -> list[Bar]:
    """Measure what takes longer: another model, workers, steady load, memory."""
    bars = [lasting.deep(transport, DEEP, best, seconds), lasting.workers(transport, seconds)]
    if steady_s:
        bars += lasting.steady(transport, capacity, steady_s)
    if calls:
        bars += lasting.memory(transport, capacity, calls)
    return bars


def plot(bars: list[Bar], drawn: dict[str, Any], file: Path) -> None:
    """Draw how near each throughput comes to its limit, latency by offered load, and the sizes of batches."""
    shares = [bar for bar in bars if bar.bar.startswith(">=")]
    names = [f"{bar.workload}\n{bar.transport}" for bar in shares]
    figure = plt.figure(figsize=(10, 0.5 * len(shares) + 5), layout="constrained")
    panels = figure.subplot_mosaic("AA;BC", height_ratios=[0.5 * len(shares) + 1, 4])
    axes, latency, sizes = panels["A"], panels["B"], panels["C"]
    axes.barh(names, [bar.ratio for bar in shares], color=["#2a7" if bar.passed else "#c63" for bar in shares])
    for row, bar in enumerate(shares):
        wanted = float(bar.bar.split()[1])
        axes.plot([wanted, wanted], [row - 0.4, row + 0.4], color="black")
    axes.invert_yaxis()
    axes.set_xlabel("share of the limit measured in the same run; the line is what is wanted")
    for transport, curves in drawn.items():
        offered = [point["offered"] for point in curves["latencies"]]
        for share, style in (("p50", "-"), ("p99", "--")):
            times = [point[f"{share}_us"] / 1000 for point in curves["latencies"]]
            latency.plot(offered, times, style, marker=".", label=f"{transport} {share}")
        counts = curves["batch_sizes"]
        sizes.plot(list(counts), list(counts.values()), marker=".", label=transport)
    latency.set(xlabel="offered calls/s, 1 image each", ylabel="ms", xscale="log", yscale="log")
    sizes.set(xlabel="images in a batch, up to; 64 calls in flight", ylabel="batches")
    latency.legend(fontsize="small", framealpha=0.5)
    sizes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


@click.command()
@click.option("--seconds", default=2, show_default=True, help="Length of each measurement.")
@click.option("--steady-s", default=60, show_default=True, help="Length of the one at half load; 0: leave it out.")
@click.option("--calls", default=200_000, show_default=True, help="Before memory is compared; 0: leave it out.")
@click.option("--model", default="digits-mlp", show_default=True, help="Model to serve.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=HERE / "out", help="Folder of bench.json and bench.png."
)
@click.option("--transports", default="grpcio,native", show_default=True, help="Which transports to measure.")
def main(seconds: int, steady_s: int, calls: int, model: str, out: Path, transports: str) -> None:
    """Measure what one core serves, beside the limits of the same run."""
    for tool in ("h2load", "taskset"):
        if not shutil.which(tool):
            raise click.ClickException(f"{tool} is not installed (Debian: nghttp2-client and util-linux have them)")
    best = max(rows / bare_seconds(DEEP, rows) for rows in DEEP_BATCHES)
    bars, drawn = [], {}
    for transport in transports.split(","):
        found, drawn[transport] = measure(transport, model, seconds)
        bars += found
        bars += last(transport, found[0].measured, best, seconds=seconds, steady_s=steady_s, calls=calls)
    rates = {bar.transport: bar for bar in bars if bar.workload == CALLS_IN_FLIGHT_64}
    if len(rates) == 2:
        native, grpcio = rates["native"].measured, rates["grpcio"].limit
        bars.append(at_least("1 image, 64 in flight: of an empty grpcio handler", "native", native, grpcio, 3.5))
    show(bars)
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "model": model,
        "bars": [asdict(bar) for bar in bars],
    }
    (out / "bench.json").write_text(json.dumps(result | drawn, indent=2) + "\n")
    plot(bars, drawn, out / "bench.png")


if __name__ == "__main__":
    main()
