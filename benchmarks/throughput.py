"""What one core serves, beside what the transport and onnxruntime would allow, and how that grows with load.

`make bench` compares within one run: the server, a server with empty handlers on the same transport, and bare
onnxruntime on one thread. The limit is the time of an empty call plus onnxruntime's for the same images, in series.
`make capacity` goes through calls in flight and workers. Both print a table in Markdown and write it as JSON.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import harness
import numpy as np
import onnxruntime as ort
from harness import MODELS, Scenario

SCENARIOS = (
    Scenario("1 image, alone", share=0.5),
    Scenario("1 image", in_flight=64, share=0.65),
    Scenario("64 images", rows=64, in_flight=8, share=0.8),
    Scenario("256 images", rows=256, in_flight=8, share=0.85),
    Scenario("1 image, stream", is_stream=True, share=0.5),
    Scenario("1 image, CNN", in_flight=64, model="digits-cnn", share=0.5),
    Scenario("64 images, CNN", rows=64, in_flight=8, model="digits-cnn", share=0.8),
)
GROWTH = (
    *(Scenario("1 image", in_flight=2**n) for n in range(8)),
    *(Scenario(f"{rows} image(s)", rows, 64, workers=count) for rows in (1, 64) for count in (1, 2)),
)
BATCHES = (1, 8, 64, 256)


def bare_s(model: str, rows: int) -> float:
    """Return the seconds of one run of bare onnxruntime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = max((MODELS / model).glob("*/model.onnx"), key=lambda file: int(file.parent.name))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: harness.INK.random((rows, 784), np.float32)}
    ticks = [time.perf_counter()]
    while ticks[-1] - ticks[0] < 0.5:
        session.run(None, feed)
        ticks.append(time.perf_counter())
    return statistics.median(after - before for before, after in itertools.pairwise(ticks))


def limit(transport: str, scenario: Scenario, seconds: float) -> float:
    """Return the calls/s that an empty call and onnxruntime allow, in series on one core."""
    with harness.empty_server(transport, scenario.rows) as (address, _):
        empty_s = 1 / harness.load(address, scenario, seconds).calls_per_s
    alone = scenario.in_flight == 1
    best_s = min(bare_s(scenario.model, rows) / rows for rows in ([scenario.rows] if alone else BATCHES))
    return 1 / (empty_s + scenario.rows * best_s)


def measure(transport: str, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Return a line of the table."""
    with harness.digits_server(transport, scenario.model, scenario.workers) as (address, url):
        names = ("process_cpu_seconds_total", "digits_predictions_total")
        before = [harness.metric(url, name) for name in names]
        run = harness.load(address, scenario, seconds)
        cpu_s, images = (harness.metric(url, name) - past for name, past in zip(names, before, strict=True))
        memory_mb = harness.metric(url, "process_resident_memory_bytes") / 1e6
        harness.check(url)
    line = {
        "transport": transport,
        "calls of": scenario.name,
        "in flight": scenario.in_flight,
        "workers": scenario.workers,
        "calls/s": run.calls_per_s,
        "images/s": run.calls_per_s * scenario.rows,
        "p50 ms": run.p50_ms,
        "p99 ms": run.p99_ms,
        "CPU µs an image": cpu_s / images * 1e6 if images else 0.0,
        "MB": memory_mb,
    }
    if scenario.share:
        share = run.calls_per_s / (most := limit(transport, scenario, seconds))
        verdict = f"{share:.2f}, >= {scenario.share} {'pass' if share >= scenario.share else 'MISS'}"
        line |= {"limit, calls/s": most, "share": verdict}
    return line


@click.command()
@click.argument("what", type=click.Choice(["bench", "capacity"]))
@harness.seconds_option
@harness.transports_option
@click.option("--only", default="", help="Only scenarios whose name begins so.")
@click.option("--out", type=click.Path(path_type=Path), default=harness.HERE / "out", help="Folder of the JSON file.")
def main(what: str, seconds: float, transports: str, only: str, out: Path) -> None:
    """Measure what one core serves (bench), or how that grows with calls in flight and workers (capacity)."""
    scenarios = [it for it in (SCENARIOS if what == "bench" else GROWTH) if it.name.startswith(only)]
    lines = []
    for transport, scenario in itertools.product(transports.split(","), scenarios):
        print(f"{transport}: {scenario.name}, {scenario.in_flight} in flight", file=sys.stderr)
        lines.append(measure(transport, scenario, seconds))
    print(harness.table(lines))
    out.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    (out / f"{what}.json").write_text(json.dumps({**machine, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
