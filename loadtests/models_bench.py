"""What callers feel while models are exchanged or tried beside them: `make bench-models`.

The server has one CPU for calls, loading and comparing, h2load another. Each row is a server of its own, measured in
this one run; 64 calls of one image are always in flight.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pinned

NAME = "digits-cnn"
BETWEEN_S = 0.5
"""Time between versions, beyond what it takes to load one; looks are as far apart."""


@contextlib.contextmanager
def exchanging(models: Path, url: str) -> Iterator[list[int]]:
    """Put version after version in the place of the one before, and yield those that have taken it."""
    stop, done = threading.Event(), list[int]()

    def exchange() -> None:
        for version in itertools.count(2):
            spare = models / f".{version}"
            shutil.copytree(models / NAME / str(version - 1), spare)
            spare.rename(models / NAME / str(version))
            while not pinned.metric(url, rf'digits_model_info{{model="{NAME}",version="{version}"}}'):
                if stop.wait(0.05):
                    return
            shutil.rmtree(models / NAME / str(version - 1))
            done.append(version)
            if stop.wait(BETWEEN_S):
                return

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def measure(transport: str, situation: str, seconds: int) -> str:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        shutil.copytree(pinned.MODELS / NAME / "1", models / NAME / "1")
        flags = [f"--models={models}", f"--reload-s={BETWEEN_S}"]
        flags += ["--shadow", "--shadow-images=1000000000"] if situation == "on trial" else []
        with pinned.digits_server(transport, NAME, flags=flags) as (address, url):
            pinned.load(address, rows=1, clients=4, streams=16, seconds=1)
            before_mb = pinned.metric(url, "process_resident_memory_bytes") / 1e6
            with contextlib.ExitStack() as stack:
                exchanged = stack.enter_context(exchanging(models, url)) if situation == "exchanged" else []
                if situation == "on trial":
                    shutil.copytree(pinned.MODELS / NAME / "1", models / NAME / "2")
                run = pinned.load(address, rows=1, clients=4, streams=16, seconds=seconds)
                count = len(exchanged)
            images = pinned.metric(url, "digits_shadow_images_total")
            after_mb = pinned.metric(url, "process_resident_memory_bytes") / 1e6
            wrong = pinned.refused(url)
    return (
        f"| {transport} | {situation} | {run.calls_per_s:,.0f} | {run.p50_us / 1e3:.1f} | {run.p99_us / 1e3:.1f} | "
        f"{wrong} | {count} | {images:,.0f} | {before_mb:.0f} → {after_mb:.0f} |"
    )


@click.command()
@click.option("--seconds", default=15, show_default=True, help="Time for each row.")
@click.option("--transport", "transports", multiple=True, default=["grpcio", "native"], show_default=True)
def main(seconds: int, transports: tuple[str, ...]) -> None:
    """Measure, and print a table."""
    print("| transport | models | calls/s | p50 ms | p99 ms | not answered | versions | images compared | MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for transport in transports:
        for situation in ("untouched", "exchanged", "on trial", "untouched"):
            print(measure(transport, situation, seconds), flush=True)


if __name__ == "__main__":
    main()
