"""What metrics, traces and log lines cost a call, and what a scrape costs: `python loadtests/observe_bench.py`.

Each is timed by itself, in this process, and the fastest of several runs counts: they are far too cheap to be seen in a
server's calls per second on a machine that does anything else.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from digits_server.access_log import access_log
from digits_server.batcher import BatchReport
from digits_server.board import Board
from digits_server.boards import Boards
from digits_server.engine import Engine
from digits_server.jobs import Outcome
from digits_server.metrics import Metrics, page
from digits_server.tracing import Tracing

MODEL = Path(__file__).parent.parent / "models/digits-mlp/1/model.onnx"
OK = grpc.StatusCode.OK


def best_us(action: Callable[[], Any], times: int = 500) -> float:
    """Return the microseconds that an action takes at best."""
    return min(timeit.repeat(action, number=times, repeat=9)) / times * 1e6


def show(what: str, cost_us: float) -> None:
    """Print one line."""
    print(f"{what:60} {cost_us:8.2f} us")


def metrics() -> None:
    """Time what counts a call and the images of a batch, and the page."""
    board, boards, engine, rng = Board(), Boards(), Engine(MODEL), np.random.default_rng(0)
    boards.add(board)
    counts = Metrics(board)
    package: Any = SimpleNamespace(name="digits-mlp", version="1", labels=tuple("0123456789"), engine=engine)
    call, batch, predicted = counts.rpc("unary", "s", "m"), counts.batch("digits-mlp"), counts.predicted(package)
    call_us = best_us(lambda: call(OK, 0.0004))
    for size in (1, 8, 32, 128):
        images = rng.integers(0, 2, (size, 784), np.uint8) * np.uint8(60)
        predictions, report = engine.predict([images]), BatchReport(size, list(rng.random(size) / 1000), 4e-5, "joined")
        run_us = best_us(partial(batch, report)) + best_us(partial(predicted, predictions))
        show(f"metrics: a call of one image, in batches of {size}", call_us + run_us / size)
    show("metrics: an image, in calls of 64 and batches of 128", (call_us + run_us / 2) / 64)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}
    app = page(boards, lambda: {"0": os.getpid()})
    show("metrics: a scrape", best_us(lambda: list(app(environ, lambda *_: None)), 5))


async def traces() -> None:
    """Time what a call's spans cost."""
    logging.disable()  # nobody takes the traces
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    tracing, outcome = Tracing(), Outcome(object(), 0, 1, 0.001, 0.0001, 32)

    def call(context: Any) -> None:
        end = tracing.rpc("s/m", None, context)
        if trace.get_current_span().is_recording():
            tracing.phases(trace.get_current_span(), "digits-mlp/1", time.monotonic(), outcome)
        end(OK)

    for what, flag in (("recorded", "01"), ("not recorded", "00")):
        metadata = (("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-{flag}"),)
        context = SimpleNamespace(invocation_metadata=lambda metadata=metadata: metadata)
        show(f"traces: a call that is {what}", best_us(lambda context=context: call(context), 100))
    os._exit(0)  # rather than wait for a collector


def access() -> None:
    """Time what a line for a call costs, as JSON."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter(["asctime", "levelname", "name", "message"]))
    logging.basicConfig(level="INFO", handlers=[handler])
    context: Any = SimpleNamespace(peer=lambda: "ipv4:127.0.0.1:50000")
    for sample in (0.01, 1.0):
        observer = access_log(sample, None)
        show(f"access log: a call, at a sample of {sample}", best_us(lambda it=observer: it("s/m", None, context)(OK)))


if __name__ == "__main__":
    metrics()
    access()
    asyncio.run(traces())
