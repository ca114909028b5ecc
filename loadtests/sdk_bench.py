"""What the Python client adds and saves, beside the generated stub and bare onnxruntime: `make bench-sdk`.

The server is pinned to one CPU, this process to another; what is compared is measured in this one run.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import click
import grpc
import mnist
import numpy as np
from bars import Bar, at_least, show
from bench import bare_seconds
from pinned import LOAD_CPU, digits_server

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import AsyncDigitClient, DigitClient

TASKS = 256
LONE_CALLS = 4000
IMAGES, LABELS = mnist.load()


async def rate(classify: Callable[[int], Awaitable[int]]) -> float:
    """Return the calls/s of 256 tasks that classify the 10,000 test images one by one; check that they are right."""
    numbers, digits = iter(range(len(IMAGES))), np.zeros(len(IMAGES), np.uint8)

    async def work() -> None:
        for number in numbers:
            digits[number] = await classify(number)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(TASKS)))
    elapsed_s = time.perf_counter() - start
    share = np.mean(digits == LABELS)
    if share < 0.99:
        raise click.ClickException(f"only {share:.2%} of the answers are right")
    return len(IMAGES) / elapsed_s


async def merging(address: str) -> Bar:
    """Measure concurrent single calls."""
    async with grpc.aio.insecure_channel(address) as channel, AsyncDigitClient(address) as client:
        stub = pb_grpc.DigitClassifierStub(channel)

        async def plain(number: int) -> int:
            return (await stub.Classify(pb.ClassifyRequest(pixels=IMAGES[number].tobytes()))).digits[0]

        async def ours(number: int) -> int:
            return (await client.classify(IMAGES[number])).digit

        rates = {call: [await rate(call) for _ in range(3)] for call in (plain, ours)}
    limit, measured = (statistics.median(rates[call]) for call in (plain, ours))
    return at_least("256 tasks, 1 image a call: calls/s of the stub's", "", measured, limit, 5)


def lone(address: str) -> Bar:
    """Measure what the synchronous client adds to a lone call."""
    times: dict[str, list[float]] = {"stub": [], "client": []}
    with grpc.insecure_channel(address) as channel, DigitClient(address) as client:
        stub = pb_grpc.DigitClassifierStub(channel)
        calls = {
            "stub": lambda: stub.Classify(pb.ClassifyRequest(pixels=IMAGES[0].tobytes()), timeout=5).digits[0],
            "client": lambda: client.classify(IMAGES[0]).digit,
        }
        for _ in range(LONE_CALLS):
            for name, call in calls.items():  # by turns, so that both meet the same disturbances
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    stub_us, client_us = (statistics.median(times[name]) * 1e6 for name in ("stub", "client"))
    added = client_us - stub_us
    return Bar("1 sync call, alone: us added to the stub's", "", added, 60, added / 60, "<= 60", added <= 60)


def many(address: str, model: str) -> Bar:
    """Measure `classify_many` with the 10,000 test images."""
    rates = []
    with DigitClient(address, model=model) as client:
        for _ in range(5):
            start = time.perf_counter()
            client.classify_many(IMAGES)
            rates.append(len(IMAGES) / (time.perf_counter() - start))
    bare = len(IMAGES) / bare_seconds(model, len(IMAGES))
    return at_least("classify_many(10,000): images/s of onnxruntime's", "", statistics.median(rates), bare, 0.5)


@click.command()
@click.option("--transports", default="grpcio,native", show_default=True, help="Which of the server's to measure.")
@click.option("--model", default="digits-mlp", show_default=True, help="Model to serve.")
def main(transports: str, model: str) -> None:
    """Measure the Python client beside the stub and bare onnxruntime."""
    os.sched_setaffinity(0, {int(LOAD_CPU)})
    bars = []
    for transport in transports.split(","):
        with digits_server(transport, model) as (address, _):
            measured = [asyncio.run(merging(address)), lone(address), many(address, model)]
        for bar in measured:
            bar.transport = transport
        bars += measured
    show(bars)


if __name__ == "__main__":
    main()
