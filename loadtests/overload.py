"""What a server does when it is offered three times what it can do: `make overload`.

The server is pinned to one CPU, h2load (Debian's nghttp2-client) and a probe to another. First h2load finds the
capacity, with callers who wait for answers; then it offers a multiple of that, whatever comes back, while the probe
makes some calls of its own and notes how long which outcome took. Goodput is what the server counts as answered.
Prints a table with the bars; exits with 1 where one is missed.
"""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import grpc
import mnist
import numpy as np
import pinned

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

CLIENTS = 8
QUEUE = 4096
"""Images that may wait: the server's default."""
PROBES_PER_S = 10
PROBE_DEADLINE_S = 10.0


@dataclass
class Probe:
    """Calls at a steady rate, whatever becomes of them."""

    calls: list[tuple[float, str, float]] = field(default_factory=list)
    """When each began, its outcome, the seconds it took."""

    async def run(self, address: str, request: pb.ClassifyRequest, seconds: float) -> None:
        """Call for so long."""
        async with grpc.aio.insecure_channel(address) as channel:
            stub = pb_grpc.DigitClassifierStub(channel)
            end, calls = time.monotonic() + seconds, set()
            while (now := time.monotonic()) < end:
                calls.add(asyncio.create_task(self._call(stub, request)))
                await asyncio.sleep(max(0.0, now + 1 / PROBES_PER_S - time.monotonic()))
            await asyncio.gather(*calls)

    async def _call(self, stub: pb_grpc.DigitClassifierAsyncStub, request: pb.ClassifyRequest) -> None:
        start = time.monotonic()
        try:
            await stub.Classify(request, timeout=PROBE_DEADLINE_S)
            outcome = "OK"
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
        self.calls.append((start, outcome, time.monotonic() - start))

    def p99_ms(self, outcome: str) -> float:
        """Return the 99th percentile of an outcome's times; 0 if it never was."""
        return 1000 * float(np.percentile([took for _, ended, took in self.calls if ended == outcome] or [0.0], 99))


def answered(url: str) -> float:
    """Return the calls that a server has answered."""
    return pinned.metric(url, 'grpc_server_handled_total{grpc_code="OK",grpc_method="Classify"')


def h2load(address: str, body: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start h2load on its CPU."""
    return subprocess.Popen(  # noqa: S603 - our own command
        [
            *("taskset", "-c", pinned.LOAD_CPU, "h2load", f"-c{CLIENTS}", *flags, f"-d{body}", "-H", "te: trailers"),
            *("-H", "content-type: application/grpc", f"http://{address}{pinned.METHOD}Classify"),
        ],
        stdout=subprocess.DEVNULL,
    )


async def measure(address: str, url: str, rows: int, factor: float, seconds: int) -> dict[str, float]:
    """Return what was measured at one server."""
    images, _ = mnist.load()
    request = pb.ClassifyRequest(pixels=images[:rows].tobytes())
    data = request.SerializeToString()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\0" + struct.pack(">I", len(data)) + data)
        file.flush()
        body = Path(file.name)
        load = h2load(address, body, "-m1", "-D7")  # as many as keep it busy, and fit in its queue
        await asyncio.sleep(2)
        before, start = await asyncio.to_thread(answered, url), time.monotonic()
        await asyncio.sleep(4)
        capacity = (await asyncio.to_thread(answered, url) - before) / (time.monotonic() - start)
        load.wait()
        idle, busy, after = Probe(), Probe(), Probe()
        await idle.run(address, request, 2)
        memory = pinned.metric(url, "process_resident_memory_bytes")
        load = h2load(address, body, "-m4096", f"-D{seconds + 1}", f"--rps={factor * capacity / CLIENTS:.0f}")
        await asyncio.sleep(1)
        before, start = await asyncio.to_thread(answered, url), time.monotonic()
        await busy.run(address, request, seconds - 1)
        goodput = (await asyncio.to_thread(answered, url) - before) / (time.monotonic() - start)
        peak = pinned.metric(url, "process_resident_memory_bytes")
        await asyncio.to_thread(load.wait)
        end = time.monotonic()
        await after.run(address, request, 4)
    normal = idle.p99_ms("OK") / 1000
    late = [began + took - end for began, outcome, took in after.calls if outcome != "OK" or took > 3 * normal + 0.01]
    return {
        "capacity": capacity,
        "goodput": goodput,
        "budget_ms": 1000 * QUEUE / rows / capacity,
        "admitted_p99_ms": busy.p99_ms("OK"),
        "refused_p99_ms": busy.p99_ms("RESOURCE_EXHAUSTED"),
        "memory_mb": (peak - memory) / 1e6,
        "recovery_s": max(late, default=0.0),
    }


def judge(transport: str, result: dict[str, float]) -> bool:
    """Print a result with its bars and return whether all are passed."""
    bars = {
        "goodput": (">=", 0.85 * result["capacity"]),
        "admitted_p99_ms": ("<=", 2 * result["budget_ms"]),
        "refused_p99_ms": ("<=", 20.0),
        "memory_mb": ("<=", 256.0),
        "recovery_s": ("<=", 2.0),
    }
    all_passed = True
    print(f"{transport}: capacity {result['capacity']:.0f} calls/s, a full queue takes {result['budget_ms']:.0f} ms")
    for name, (sign, bar) in bars.items():
        passed = result[name] >= bar if sign == ">=" else result[name] <= bar
        all_passed &= passed
        print(f"  {name:<16} {result[name]:>9.1f}  {sign} {bar:.1f}  {'pass' if passed else 'MISS'}")
    return all_passed


@click.command()
@click.option("--seconds", default=60, show_default=True, help="Length of the overload.")
@click.option("--factor", default=3.0, show_default=True, help="What is offered, as a multiple of the capacity.")
@click.option("--model", default="digits-cnn", show_default=True, help="Model to serve.")
@click.option("--rows", default=256, show_default=True, help="Images in a call.")
@click.option("--transports", default="grpcio,native", show_default=True, help="Which transports to measure.")
def main(seconds: int, factor: float, model: str, rows: int, transports: str) -> None:
    """Offer a server more than it can do, and judge what becomes of it."""
    passed = []
    for transport in transports.split(","):
        flags = [f"--models={pinned.MODELS}", f"--default-model={model}", f"--transport={transport}", "--workers=1"]
        flags += [f"--max-queue={QUEUE}", "--port=0", "--metrics-port=0", "--log-level=warning"]
        with pinned.running("-m", "digits_server", *flags) as (address, url):
            result = asyncio.run(measure(address, url, rows, factor, seconds))
        passed.append(judge(transport, result))
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
