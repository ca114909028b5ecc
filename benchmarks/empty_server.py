"""A server whose handlers do nothing: the limit that a transport itself sets.

`python empty_server.py TRANSPORT ROWS` listens on a free port, prints it, and answers every call of
`digits.v1.DigitClassifier` with the bytes of a fixed answer for ROWS images, without reading the request.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import uvloop

from digits.v1 import classifier_pb2 as pb

ROWS = int(os.environ.setdefault("EMPTY_SERVER_ROWS", sys.argv[-1]))  # Envoy loads this module in its own process
ANSWER = pb.ClassifyResponse(
    digits=[7] * ROWS,
    confidences=[0.9] * ROWS,
    probabilities=[0.1] * 10 * ROWS,
    model="digits-mlp",
    version="1",
    quality_flags=[0] * ROWS,
    timing=pb.Timing(queue_seconds=1, inference_seconds=1, batch_size=ROWS),
)
UNARY = ANSWER.SerializeToString()
STREAMED = pb.ClassifyStreamResponse(response=ANSWER).SerializeToString()


async def classify(_request: bytes, _context: Any) -> bytes:
    """Answer."""
    return UNARY


async def classify_stream(requests: AsyncIterator[bytes], context: Any) -> None:
    """Answer each message."""
    async for _ in requests:
        await context.write(STREAMED)


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Do the same as an ASGI application, as Envoy calls it."""
    if scope["type"] != "http":
        return
    is_stream = scope["path"].endswith("ClassifyStream")
    answer = STREAMED if is_stream else UNARY
    framed = b"\0" + struct.pack(">I", len(answer)) + answer
    headers = [(b"content-type", b"application/grpc")]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    received, more = bytearray(), True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        received += message.get("body", b"")
        while is_stream and len(received) >= 5 and len(received) >= (size := 5 + int.from_bytes(received[1:5])):
            del received[:size]
            await send({"type": "http.response.body", "body": framed, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if is_stream else framed})
    await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]})


async def serve(transport: str) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    if transport == "envoy":
        from pyvoy import PyvoyServer  # noqa: PLC0415 - not everywhere

        async with PyvoyServer("empty_server:app", port=0, loop="uvloop", lifespan=False) as envoy:
            print(f"ready: gRPC 127.0.0.1:{envoy.listener_port} (envoy)", flush=True)
            await stopped.wait()
        return
    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Classify": grpc.unary_unary_rpc_method_handler(classify),
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(classify_stream),
    }
    server.add_registered_method_handlers("digits.v1.DigitClassifier", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready: gRPC 127.0.0.1:{port} (grpcio)", flush=True)
    await stopped.wait()
    await server.stop(None)


if __name__ == "__main__":
    if sys.argv[1] not in {"grpcio", "envoy"}:
        sys.exit(f"{sys.argv[1]}: there is no empty server on it; allowed are grpcio and envoy")
    uvloop.run(serve(sys.argv[1]))
