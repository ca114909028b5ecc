"""A server whose answers the test gives: for what no Digits server does, or does only when broken."""

import asyncio
import contextlib
from concurrent import futures

import grpc

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import NotFound


def fail(_):
    """Raise what a call may: in another process, which can import this module but no test's."""
    raise NotFound(grpc.StatusCode.NOT_FOUND, "said so")


async def until(condition):
    """Return once something is true that happens in the server's threads."""
    while not condition():  # noqa: ASYNC110 - threads set no asyncio.Event
        await asyncio.sleep(0.001)


def answer(request, **fields):
    """Return an answer whose digits are the first pixel of each image."""
    count = len(request.pixels) // 784 or len(request.vectors) // 784
    digits = list(request.pixels[::784]) or [round(value * 255) for value in request.vectors[::784]]
    columns = {"digits": digits, "confidences": [1.0] * count, "quality_flags": [0] * count}
    return pb.ClassifyResponse(**columns, probabilities=[0.1] * 10 * count, model="stub", **fields)


class Servicer(pb_grpc.DigitClassifierServicer):
    """Calls `classify(request, context)` for each request and remembers how many images each had."""

    def __init__(self, classify=lambda request, context: answer(request)):
        self.classify, self.sizes, self.metadata = classify, [], []

    def Classify(self, request, context):  # noqa: N802 - named by the .proto
        self.sizes.append((len(request.pixels) or len(request.vectors)) // 784)
        self.metadata.append(dict(context.invocation_metadata()))
        return self.classify(request, context)


@contextlib.contextmanager
def serving(servicer, address="127.0.0.1:0", credentials=None):
    """Serve, yield the port, stop."""
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_DigitClassifierServicer_to_server(servicer, server)
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()
