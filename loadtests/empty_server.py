"""A server whose handlers do nothing, on either transport: the limit that the stack itself sets.

`python empty_server.py TRANSPORT ROWS` listens on a free port, prints it, and answers every call of
`digits.v1.DigitClassifier` with the bytes of a fixed answer for ROWS images, without reading the request. TRANSPORT is
`grpcio` or `native` (pygrpc-native's own asyncio server).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pygrpc_native.aio
import uvloop

from digits.v1 import classifier_pb2 as pb
from digits_server.config import Config
from digits_server.rpc import transports as transport

SERVICE = "digits.v1.DigitClassifier"


def answer(rows: int) -> pb.ClassifyResponse:
    """Return an answer of the size that `rows` images get."""
    return pb.ClassifyResponse(
        digits=[7] * rows,
        confidences=[0.9] * rows,
        probabilities=[0.1] * 10 * rows,
        model="digits-mlp",
        version="1",
        quality_flags=[0] * rows,
        timing=pb.Timing(queue_seconds=1, inference_seconds=1, batch_size=rows),
    )


async def serve(name: str, rows: int) -> None:
    """Serve until killed."""
    unary = answer(rows).SerializeToString()
    streamed = pb.ClassifyStreamResponse(response=answer(rows)).SerializeToString()

    async def classify(_request: bytes, _context: Any) -> bytes:
        return unary

    async def classify_stream(requests: AsyncIterator[bytes], context: Any) -> None:
        async for _ in requests:
            await context.write(streamed)

    handlers: dict[str, grpc.RpcMethodHandler[bytes, Any]] = {
        "Classify": grpc.unary_unary_rpc_method_handler(classify),
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(classify_stream),
    }
    server: Any
    if name == "native":
        server = pygrpc_native.aio.Server(io_threads=min(2, Config().cpus))
    else:
        server = transport.make(Config(port=0, transport=name)).server
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready: gRPC 127.0.0.1:{port} ({name})", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
