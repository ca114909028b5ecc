"""What one core serves, how latency grows with load, and throughput with workers: `make capacity`.

h2load (Debian's nghttp2-client) keeps calls in flight. First server and h2load have a CPU each; then they share both,
with one worker and with two. Writes docs/capacity.json, and from it the tables of docs/capacity.md and its plot.
"""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pinned
import report

DOCS = pinned.HERE.parent / "docs"
TRANSPORTS = ("grpcio", "native")
RAMP = (1, 2, 4, 8, 16, 32, 64, 128)
CONNECTIONS = 8
Point = dict[str, Any]


def point(address: str, url: str, *, rows: int, in_flight: int, seconds: int, cpus: str = "") -> Point:
    """Return what a server does with so many calls in flight, and the CPU time that it needs for an image."""
    clients = min(in_flight, CONNECTIONS)
    before = pinned.metric(url, "process_cpu_seconds_total"), pinned.metric(url, "digits_predictions_total")
    run = pinned.load(address, rows=rows, clients=clients, streams=in_flight // clients, seconds=seconds, cpus=cpus)
    cpu_s = pinned.metric(url, "process_cpu_seconds_total") - before[0]
    images = pinned.metric(url, "digits_predictions_total") - before[1]
    return {
        "rows": rows,
        "in_flight": in_flight,
        "rate": run.calls_per_s,
        "p50_ms": run.p50_us / 1e3,
        "p99_ms": run.p99_us / 1e3,
        "error_share": pinned.refused(url) / images,
        "cpu_us": cpu_s / images * 1e6,
    }


def measure(seconds: int) -> dict[str, Any]:
    """Measure everything: a ramp, other workloads, and workers, of each transport."""
    ramps, workloads, workers = {}, [], []
    for transport in TRANSPORTS:
        with pinned.digits_server(transport, "digits-mlp") as at:
            ramps[transport] = [point(*at, rows=1, in_flight=count, seconds=seconds) for count in RAMP]
            larger = [point(*at, rows=rows, in_flight=8, seconds=seconds) for rows in (64, 256)]
        with pinned.digits_server(transport, "digits-cnn") as at:
            cnn = [point(*at, rows=rows, in_flight=64 // rows * 8, seconds=seconds) for rows in (8, 64)]
        for model, points in (("digits-mlp", [*ramps[transport][:7:6], *larger]), ("digits-cnn", cnn)):
            workloads += [{"transport": transport, "model": model, **each} for each in points]
        for count in (1, 2):
            with pinned.digits_server(transport, "digits-mlp", workers=count, cpus=pinned.BOTH) as at:
                points = [point(*at, rows=rows, in_flight=64, seconds=seconds, cpus=pinned.BOTH) for rows in (1, 64)]
                memory_mb = pinned.metric(at[1], "process_resident_memory_bytes") / 1e6
            workers += [{"transport": transport, "workers": count, "memory_mb": memory_mb, **each} for each in points]
    return {"ramps": ramps, "workloads": workloads, "workers": workers}


def levels(ramps: dict[str, list[Point]]) -> list[Point]:
    """Return ramps as levels of one course, a workload for each."""
    return [
        {"stage": "", "users": count, "figures": {name: points[number] for name, points in ramps.items()}}
        for number, count in enumerate(RAMP)
    ]


def table(points: list[Point], names: dict[str, str]) -> str:
    """Return points as a Markdown table; names are headings, by key."""
    columns = names | {"images": "images/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "cpu_us": "CPU µs an image"}
    lines = [[*columns.values()], ["---"] * len(columns)]
    for each in points:
        cells = each | {"images": each["rate"] * each["rows"]}
        lines.append([figure(cells[key]) for key in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(value: str | float) -> str:
    """Return a cell of a table."""
    return (
        value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"
    )


def show(results: dict[str, Any]) -> None:
    """Draw the plot and write the tables into the guide, each below its mark."""
    report.plot(levels(results["ramps"]), DOCS / "images/capacity.png")
    names = {
        "workloads": {
            "transport": "transport",
            "model": "model",
            "rows": "images a call",
            "in_flight": "calls in flight",
        },
        "workers": {"transport": "transport", "workers": "workers", "rows": "images a call", "memory_mb": "MB"},
    }
    guide = DOCS / "capacity.md"
    text = guide.read_text()
    for name, headings in names.items():
        lines = table(results[name], headings)
        text = re.sub(rf"(<!-- {name} -->\n)(\|.*\n)*", rf"\g<1>{lines}\n", text)
        click.echo(f"{lines}\n")
    guide.write_text(text)


@click.command()
@click.option("--seconds", default=2, show_default=True, help="Length of each measurement, after a second of warm-up.")
@click.option("--redraw", is_flag=True, help="Do not measure: tables and plot of docs/capacity.json.")
def main(seconds: int, redraw: bool) -> None:
    """Measure, or only redraw, the figures of docs/capacity.md."""
    file = DOCS / "capacity.json"
    if not redraw:
        file.write_text(json.dumps(measure(seconds), indent=1) + "\n")
    show(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
