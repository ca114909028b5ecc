"""How latency grows with load, and throughput with workers: `make capacity`. Draws docs/images/capacity-*.png.

h2load (Debian's nghttp2-client) keeps a number of calls in flight, doubled from level to level. First the server has
one CPU and h2load another; then server and h2load share both, with one worker and with two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pinned
import report

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128)
ROWS = {"unary": 1, "batch-64": 64}
CONNECTIONS = 8


def level(address: str, name: str, in_flight: int, seconds: int) -> dict[str, float]:
    """Return what a server does with so many calls in flight."""
    clients = min(in_flight, CONNECTIONS)
    run = pinned.load(address, rows=ROWS[name], clients=clients, streams=in_flight // clients, seconds=seconds)
    return {"rate": run.calls_per_s, "p50_ms": run.p50_us / 1000, "p99_ms": run.p99_us / 1000, "error_share": 0}


def ramp(transport: str, seconds: int) -> list[dict[str, Any]]:
    """Return the levels of one core."""
    with pinned.digits_server(transport, "digits-mlp") as (address, _):
        return [
            {
                "stage": f"{count}",
                "users": count,
                "figures": {f"{transport}/{name}": level(address, name, count, seconds) for name in ROWS},
            }
            for count in IN_FLIGHT
        ]


def workers(transport: str, count: int, seconds: int) -> dict[str, float]:
    """Return the calls/s by workload of so many workers that share two CPUs with h2load."""
    flags = (f"--models={pinned.MODELS}", f"--transport={transport}", f"--workers={count}", "--max-queue=65536")
    with pinned.running("-m", "digits_server", *flags, "--port=0", "--metrics-port=0") as (address, _):
        return {name: level(address, name, 64, seconds)["rate"] for name in ROWS}


@click.command()
@click.option("--seconds", default=2, show_default=True, help="Length of each level, after a second of warm-up.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=pinned.HERE.parent / "docs/images", help="Folder of plots."
)
def main(seconds: int, out: Path) -> None:
    """Measure how latency grows with load, and throughput with workers."""
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for transport in ("grpcio", "native"):
        results[transport] = levels = ramp(transport, seconds)
        click.echo(report.table(levels, mark_knee=True))
        report.plot(levels, out / f"capacity-{transport}.png")
    pinned.SERVER_CPU = pinned.LOAD_CPU = "0,1"
    click.echo(f"\n{'transport':<10} {'workers':>7}" + "".join(f" {name + ' calls/s':>17}" for name in ROWS))
    for transport in ("grpcio", "native"):
        for count in (1, 2):
            rates = workers(transport, count, seconds)
            click.echo(f"{transport:<10} {count:>7}" + "".join(f" {rate:>17,.0f}" for rate in rates.values()))
            results[f"{transport}/{count} workers"] = rates
    pinned.HERE.joinpath("out").mkdir(exist_ok=True)
    pinned.HERE.joinpath("out/capacity.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
