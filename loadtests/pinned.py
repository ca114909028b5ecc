"""Servers on one CPU and h2load (Debian's nghttp2-client) on another: what the benchmarks measure with."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import mnist
import numpy as np
import numpy.typing as npt

from digits.v1 import classifier_pb2 as pb

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
SERVER_CPU, LOAD_CPU = "0", "1"
BOTH = f"{SERVER_CPU},{LOAD_CPU}"
METHOD = "/digits.v1.DigitClassifier/"
STREAM_MESSAGES = 2000  # in one call of the streaming workload


@dataclass
class Run:
    """What h2load measured."""

    calls_per_s: float
    p50_us: float
    p99_us: float
    started_s: npt.NDArray[np.float64]
    """When each call began, in seconds since 1970."""
    took_s: npt.NDArray[np.float64]
    """And how long it took."""


@contextlib.contextmanager
def running(*command: str, cpus: str = "") -> Iterator[tuple[str, str]]:
    """Run a server, by default on its CPU, and yield its address and, if it has one, that of its metrics."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        ["taskset", "-c", cpus or SERVER_CPU, sys.executable, *command],  # noqa: S607
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


def digits_server(
    transport: str,
    model: str = "digits-mlp",
    workers: int = 1,
    cpus: str = "",
    *,
    flags: Sequence[str] = (),
    program: Sequence[str] = ("-m", "digits_server"),
) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """Return a running digits-server, or a program made of it; its flags go before these."""
    ours = [f"--models={MODELS}", f"--default-model={model}", f"--transport={transport}", f"--workers={workers}"]
    ours += ["--max-queue=65536", "--port=0", "--metrics-port=0", "--log-level=warning"]
    return running(*program, *ours, *flags, cpus=cpus)


def empty_server(transport: str, rows: int) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """Return a running server with empty handlers."""
    return running(str(HERE / "empty_server.py"), transport, str(rows))


def load(
    address: str,
    *,
    rows: int,
    clients: int,
    streams: int,
    seconds: int,
    stream: bool = False,
    rate: float = 0,
    cpus: str = "",
) -> Run:
    """Drive a server with `clients` connections of `streams` calls in flight each; images are MNIST's.

    With a `rate` they send so many calls/s together, whether answers come or not, up to `streams` in flight each.
    """
    images, _ = mnist.load()
    request = pb.ClassifyRequest(pixels=images[:rows].tobytes())
    data = (pb.ClassifyStreamRequest(request=request) if stream else request).SerializeToString()
    body = (b"\0" + struct.pack(">I", len(data)) + data) * (STREAM_MESSAGES if stream else 1)
    with tempfile.NamedTemporaryFile() as file, tempfile.NamedTemporaryFile() as log:
        file.write(body)
        file.flush()
        output = subprocess.run(  # noqa: S603 - our own command
            [
                *("taskset", "-c", cpus or LOAD_CPU, "h2load", f"-c{clients}", f"-m{streams}", f"-D{seconds}"),
                *("--warm-up-time=1", f"-d{file.name}", f"--log-file={log.name}", "-H", "te: trailers"),
                *("-H", "content-type: application/grpc", *([f"--rps={rate / clients:.3f}"] if rate else [])),
                f"http://{address}{METHOD}{'ClassifyStream' if stream else 'Classify'}",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        # Lines of the log: start time in microseconds since 1970, HTTP status, microseconds.
        started, _, times = np.fromfile(log.name, np.int64, sep=" ").reshape(-1, 3).T
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", output)
    finished = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    if not finished or not failed or any(map(int, failed.groups())):
        raise click.ClickException(f"h2load failed:\n{output}")
    calls = float(finished[1]) * (STREAM_MESSAGES if stream else 1)
    p50, p99 = np.percentile(times, [50, 99]).tolist() if len(times) else (0.0, 0.0)
    return Run(calls, p50, p99, started / 1e6, times / 1e6)


def page(metrics_url: str) -> str:
    """Return what a server's metrics say."""
    with urllib.request.urlopen(metrics_url, timeout=20) as answer:  # noqa: S310 - our own address
        text: str = answer.read().decode()
    return text


def metric(metrics_url: str, name: str) -> float:
    """Return the sum of the samples whose name and labels begin so."""
    return sum(float(line.rpartition(" ")[2]) for line in page(metrics_url).splitlines() if line.startswith(name))


def refused(metrics_url: str) -> int:
    """Return how many calls a server did not answer with OK; h2load knows HTTP's status only.

    Cancelled ones don't count: h2load leaves those in flight when its time is up.
    """
    found = re.findall(r'^grpc_server_handled_total{grpc_code="(\w+)".*} (\S+)$', page(metrics_url), re.MULTILINE)
    return sum(int(float(count)) for code, count in found if code not in {"OK", "CANCELLED"})
