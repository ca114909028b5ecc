"""What one core serves, beside what the stack and onnxruntime would allow: `make bench`.

The server is pinned to one CPU, h2load (Debian's nghttp2-client) to another, and what is compared is measured in this
one run: the server, a server with empty handlers on the same transport, and bare onnxruntime. L, the limit, is
the time of an empty call plus that of onnxruntime for the same images, in series. Prints a table with the bars; writes
bench.json and bench.png.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import matplotlib as mpl
import mnist
import numpy as np
import onnxruntime as ort

from digits.v1 import classifier_pb2 as pb

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
SERVER_CPU, LOAD_CPU = "0", "1"
METHOD = "/digits.v1.DigitClassifier/"
STREAM_MESSAGES = 2000  # in one call of the streaming workload


@dataclass
class Run:
    """What h2load measured."""

    calls_per_s: float
    p50_us: float
    p99_us: float


@dataclass
class Bar:
    """One line of the table."""

    workload: str
    transport: str
    measured: float
    limit: float
    ratio: float
    bar: str
    passed: bool


@contextlib.contextmanager
def running(*command: str) -> Iterator[tuple[str, str]]:
    """Run a server on its CPU and yield its address and, if it has one, that of its metrics."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        ["taskset", "-c", SERVER_CPU, sys.executable, *command],  # noqa: S607
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        ready = re.search(r"gRPC (\S+) \(\w+\)(?:, metrics (\S+?),)?", line)
        if not ready:
            raise click.ClickException(f"{' '.join(command)} did not start: {line!r}")
        yield ready[1], ready[2] or ""
    finally:
        process.terminate()
        process.wait(30)


def digits_server(transport: str, model: str) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """Return a running digits-server."""
    flags = [f"--models={MODELS}", f"--default-model={model}", f"--transport={transport}", "--max-queue=65536"]
    return running("-m", "digits_server", *flags, "--port=0", "--metrics-port=0", "--log-level=warning")


def empty_server(transport: str, rows: int) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """Return a running server with empty handlers."""
    return running(str(HERE / "empty_server.py"), transport, str(rows))


def load(address: str, *, rows: int, clients: int, streams: int, seconds: int, stream: bool = False) -> Run:
    """Drive a server with `clients` connections of `streams` calls in flight each; images are MNIST's."""
    images, _ = mnist.load()
    request = pb.ClassifyRequest(pixels=images[:rows].tobytes())
    data = (pb.ClassifyStreamRequest(request=request) if stream else request).SerializeToString()
    body = (b"\0" + struct.pack(">I", len(data)) + data) * (STREAM_MESSAGES if stream else 1)
    with tempfile.NamedTemporaryFile() as file, tempfile.NamedTemporaryFile() as log:
        file.write(body)
        file.flush()
        output = subprocess.run(  # noqa: S603 - our own command
            [
                *("taskset", "-c", LOAD_CPU, "h2load", f"-c{clients}", f"-m{streams}", f"-D{seconds}"),
                *("--warm-up-time=1", f"-d{file.name}", f"--log-file={log.name}", "-H", "te: trailers"),
                *("-H", "content-type: application/grpc"),
                f"http://{address}{METHOD}{'ClassifyStream' if stream else 'Classify'}",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        # Lines of the log: start time, HTTP status, microseconds.
        times = np.array([int(line.split()[2]) for line in Path(log.name).read_text().splitlines()])
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", output)
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    if not rate or not failed or any(map(int, failed.groups())):
        raise click.ClickException(f"h2load failed:\n{output}")
    calls = float(rate[1]) * (STREAM_MESSAGES if stream else 1)
    return Run(calls, *(np.percentile(times, [50, 99]).tolist() if len(times) else (0.0, 0.0)))


def refused(metrics_url: str) -> int:
    """Return how many calls a server did not answer with OK; h2load knows HTTP's status only.

    Cancelled ones don't count: h2load leaves those in flight when its time is up.
    """
    with urllib.request.urlopen(metrics_url, timeout=20) as page:  # noqa: S310 - our own address
        found = re.findall(
            r'^grpc_server_handled_total{grpc_code="(\w+)".*} (\S+)$', page.read().decode(), re.MULTILINE
        )
    return sum(int(float(count)) for code, count in found if code not in {"OK", "CANCELLED"})


def bare_seconds(model: str, rows: int) -> float:
    """Return the seconds of one run of bare onnxruntime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = max((MODELS / model).glob("*/model.onnx"), key=lambda file: int(file.parent.name))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: mnist.load()[0][:rows].astype(np.float32) / 255}
    ticks = [time.perf_counter()]
    while ticks[-1] - ticks[0] < 1:
        session.run(None, feed)
        ticks.append(time.perf_counter())
    return statistics.median(after - before for before, after in itertools.pairwise(ticks))


def at_least(workload: str, transport: str, measured: float, limit: float, share: float) -> Bar:
    """Return the verdict on a throughput that should reach a share of its limit."""
    return Bar(workload, transport, measured, limit, measured / limit, f">= {share}", bool(measured >= share * limit))


def measure(transport: str, model: str, seconds: int) -> list[Bar]:
    """Measure one transport."""
    bars = []
    with digits_server(transport, model) as (address, metrics):
        many = load(address, rows=1, clients=8, streams=8, seconds=seconds)
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
    bars.append(at_least("1 image, 64 in flight: calls/s", transport, many.calls_per_s, empty.calls_per_s, share))
    added_us = lone.p50_us - empty_lone.p50_us
    bars.append(Bar("1 image, alone: us added to p50", transport, added_us, 60, added_us / 60, "<= 60", added_us <= 60))
    tail = lone.p99_us / empty_lone.p99_us
    bars.append(
        Bar(
            "1 image, alone: p99 us",
            transport,
            lone.p99_us,
            empty_lone.p99_us,
            tail,
            "<= 2",
            lone.p99_us <= 2 * empty_lone.p99_us,
        )
    )
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
    return bars


def show(bars: list[Bar]) -> None:
    """Print the table."""
    click.echo(f"{'workload':<50} {'transport':<9} {'measured':>10} {'limit':>10} {'ratio':>6}  bar")
    for bar in bars:
        figures = f"{bar.measured:>10.0f} {bar.limit:>10.0f} {bar.ratio:>6.2f}"
        click.echo(f"{bar.workload:<50} {bar.transport:<9} {figures}  {bar.bar} {'pass' if bar.passed else 'MISS'}")


def plot(bars: list[Bar], file: Path) -> None:
    """Draw how near each throughput comes to its limit."""
    shares = [bar for bar in bars if bar.bar.startswith(">=")]
    names = [f"{bar.workload}\n{bar.transport}" for bar in shares]
    figure, axes = plt.subplots(figsize=(9, 0.7 * len(shares) + 1.5), layout="constrained")
    axes.barh(names, [bar.ratio for bar in shares], color=["#2a7" if bar.passed else "#c63" for bar in shares])
    for row, bar in enumerate(shares):
        wanted = float(bar.bar.split()[1])
        axes.plot([wanted, wanted], [row - 0.4, row + 0.4], color="black")
    axes.invert_yaxis()
    axes.set_xlabel("share of the limit measured in the same run; the line is what is wanted")
    figure.savefig(file, dpi=120)
    plt.close(figure)


@click.command()
@click.option("--seconds", default=5, show_default=True, help="Length of each measurement.")
@click.option("--model", default="digits-mlp", show_default=True, help="Model to serve.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=HERE / "out", help="Folder of bench.json and bench.png."
)
@click.option("--transports", default="grpcio,native", show_default=True, help="Which transports to measure.")
def main(seconds: int, model: str, out: Path, transports: str) -> None:
    """Measure what one core serves, beside the limits of the same run."""
    for tool in ("h2load", "taskset"):
        if not shutil.which(tool):
            raise click.ClickException(f"{tool} is not installed (Debian: nghttp2-client and util-linux have them)")
    bars = [bar for transport in transports.split(",") for bar in measure(transport, model, seconds)]
    rates = {bar.transport: bar for bar in bars if bar.workload.startswith("1 image, 64")}
    if len(rates) == 2:
        native, grpcio = rates["native"].measured, rates["grpcio"].limit
        bars.append(at_least("1 image, 64 in flight: of an empty grpcio handler", "native", native, grpcio, 3.5))
    show(bars)
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "model": model,
    }
    (out / "bench.json").write_text(json.dumps(result | {"bars": [asdict(bar) for bar in bars]}, indent=2) + "\n")
    plot(bars, out / "bench.png")


if __name__ == "__main__":
    main()
