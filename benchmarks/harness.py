"""What all benchmarks measure with: a server on one CPU, h2load (Debian's nghttp2-client) on another."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from digits.v1 import classifier_pb2 as pb

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
SERVER_CPU, LOAD_CPU, BOTH = "0", "1", "0,1"
METHOD = "/digits.v1.DigitClassifier/"
STREAM_MESSAGES = 500
"""In one call of `ClassifyStream`."""
INK = np.random.default_rng(7)
"""Pixels cost the same whatever they show."""


@dataclass(frozen=True)
class Scenario:
    """One line of a table: what is called, by how many, and what a share of the limit is wanted."""

    name: str
    rows: int = 1
    """Images in a call."""
    in_flight: int = 1
    model: str = "digits-mlp"
    is_stream: bool = False
    workers: int = 1
    share: float = 0.0
    """Of the limit that is wanted; 0: no limit is measured."""


@dataclass(frozen=True)
class Run:
    """What h2load measured."""

    calls_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


def transports() -> str:
    """Return the transports that the server offers, comma separated."""
    command = (sys.executable, "-m", "digits_server", "--help")
    offered = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own command
    found = re.search(r"--transport \[(.*?)\]", offered, re.DOTALL)
    return ",".join(name for name in re.findall(r"\w+", found[1] if found else "grpcio") if name != "auto")


transports_option = click.option(
    "--transports", default=transports, show_default="all that the server offers", help="Comma separated."
)
seconds_option = click.option("--seconds", default=3.0, show_default=True, help="Length of each measurement.")


@contextlib.contextmanager
def running(*command: str, cpus: str = SERVER_CPU) -> Iterator[tuple[str, str]]:
    """Run a server of ours on some CPUs and yield its address and, if it has one, that of its metrics.

    Raises:
        click.ClickException: It did not start.
    """
    process = subprocess.Popen(  # noqa: S603 - our own command
        ("taskset", "-c", cpus, sys.executable, *command),  # noqa: S607 - of util-linux
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
    transport: str, model: str = "digits-mlp", workers: int = 1, flags: Sequence[str] = ()
) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """Return a running digits-server; with several workers it shares both CPUs with h2load."""
    ours = (f"--models={MODELS}", f"--default-model={model}", f"--transport={transport}", f"--workers={workers}")
    more = ("--port=0", "--metrics-port=0", "--log-level=warning", *flags)
    return running("-m", "digits_server", *ours, *more, cpus=BOTH if workers > 1 else SERVER_CPU)


def empty_server(transport: str, rows: int) -> contextlib.AbstractContextManager[tuple[str, str]]:
    """Return a running server with empty handlers."""
    return running(str(HERE / "empty_server.py"), transport, str(rows))


def body(rows: int, *, is_stream: bool = False) -> bytes:
    """Return the body of a call with so many images."""
    request = pb.ClassifyRequest(pixels=INK.integers(256, size=rows * 784, dtype=np.uint8).tobytes())
    data = (pb.ClassifyStreamRequest(request=request) if is_stream else request).SerializeToString()
    return (b"\0" + struct.pack(">I", len(data)) + data) * (STREAM_MESSAGES if is_stream else 1)


def load(address: str, scenario: Scenario, seconds: float, *, rate: float = 0) -> Run:
    """Keep a scenario's calls in flight on up to 8 connections; with a `rate`, offer so many calls/s whatever comes.

    Raises:
        click.ClickException: A call failed by HTTP's measure; gRPC's own status is in the server's metrics.
    """
    clients = min(scenario.in_flight, 8)
    method = "ClassifyStream" if scenario.is_stream else "Classify"
    with tempfile.NamedTemporaryFile() as file, tempfile.NamedTemporaryFile() as log:
        file.write(body(scenario.rows, is_stream=scenario.is_stream))
        file.flush()
        command = (
            *("taskset", "-c", BOTH if scenario.workers > 1 else LOAD_CPU),
            *(
                "h2load",
                f"-c{clients}",
                f"-m{scenario.in_flight // clients}",
                f"-D{1000 * seconds:.0f}ms",
                "--warm-up-time=1",
            ),
            *(f"-d{file.name}", f"--log-file={log.name}", "-H", "te: trailers", "-H", "content-type: application/grpc"),
            *([f"--rps={rate / clients:.3f}"] if rate else []),
            f"http://{address}{METHOD}{method}",
        )
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own
        # Lines of the log: start in microseconds since 1970, HTTP status, microseconds.
        took_ms = np.fromfile(log.name, np.int64, sep=" ").reshape(-1, 3)[:, 2] / 1e3
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", output)
    finished = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    if not finished or not failed or any(map(int, failed.groups())):
        raise click.ClickException(f"h2load failed:\n{output}")
    messages = STREAM_MESSAGES if scenario.is_stream else 1
    p50, p99, most = np.percentile(took_ms / messages, [50, 99, 100]).tolist() if len(took_ms) else (0.0, 0.0, 0.0)
    return Run(float(finished[1]) * messages, p50, p99, most)


def metric(url: str, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - our own address
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def check(url: str) -> None:
    """See that a server has answered all calls with OK; those that h2load left behind at its end are cancelled.

    Raises:
        click.ClickException: It has not.
    """
    count = {code: metric(url, "grpc_server_handled_total", grpc_code=code) for code in ("OK", "CANCELLED")}
    if other := metric(url, "grpc_server_handled_total") - sum(count.values()):
        raise click.ClickException(f"{other:.0f} calls were not answered with OK, {count['OK']:.0f} were")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; their keys are its headings."""

    def cell(value: Any) -> str:
        return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
