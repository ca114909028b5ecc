"""What Ray Serve costs: the same models served by it and by digits-server, on the CPUs that h2load uses, too.

`python loadtests/ray_bench.py`, where requirements/ray.txt is installed, with h2load (Debian's nghttp2-client).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pinned
import yaml

from digits_client import DigitClient, DigitsError

DEPLOY = pinned.HERE.parent / "deploy/ray"
PATIENCE_S = 90


@contextlib.contextmanager
def ray_serve() -> Iterator[str]:
    """Yield the address of the shipped application, on one node and a free port."""
    config = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        config["grpc_options"]["port"] = port = free.getsockname()[1]
    config["applications"][0]["args"] = {"models": str(pinned.MODELS)}
    path = f"{DEPLOY}:{os.environ.get('PYTHONPATH', '')}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        serve = subprocess.Popen(  # noqa: S603 - our own command
            [Path(sys.executable).with_name("serve"), "run", file.name],
            env={**os.environ, "PYTHONPATH": path, "RAY_AUTH_TOKEN": secrets.token_hex(32)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait(f"127.0.0.1:{port}")
            yield f"127.0.0.1:{port}"
        finally:
            serve.send_signal(signal.SIGINT)
            serve.wait(60)


def wait(address: str) -> None:
    """Return when a server answers.

    Raises:
        DigitsError: It did not for too long.
    """
    until = time.monotonic() + PATIENCE_S
    with DigitClient(address) as client:
        while True:
            try:
                client.models()
            except DigitsError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
            else:
                return


def measure(name: str, address: str, seconds: int) -> None:
    """Print a line for each workload."""
    for rows in (1, 64):
        for clients, streams in ((1, 1), (8, 8)):
            run = pinned.load(address, rows=rows, clients=clients, streams=streams, seconds=seconds, cpus=pinned.BOTH)
            print(
                f"{name:24s} {rows:5d} {clients * streams:9d} {run.calls_per_s:9,.0f} {run.calls_per_s * rows:10,.0f} "
                f"{run.p50_us / 1e3:8.1f} {run.p99_us / 1e3:8.1f}"
            )


@click.command()
@click.option("--seconds", default=3, show_default=True, help="Length of each measurement, after a second of warm-up.")
def main(seconds: int) -> None:
    """Measure Ray Serve with two replicas, and digits-server with two workers."""
    print("served by                images in flight   calls/s   images/s   p50 ms   p99 ms")
    with ray_serve() as address:
        measure("Ray Serve", address, seconds)
    for transport in ("grpcio", "native"):
        with pinned.digits_server(transport, workers=2, cpus=pinned.BOTH) as (address, _):
            measure(f"digits-server, {transport}", address, seconds)


if __name__ == "__main__":
    main()
