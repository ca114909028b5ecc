"""What the services do: message to array, array to batcher, answer to message. Faults are raised, not handled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_server import converters, wire
from digits_server.errors import ServerError, public
from digits_server.registry import Registry

SERVICE = pb.DESCRIPTOR.services_by_name["DigitClassifier"].full_name
NO_DEADLINE_S = 1e8
STREAM_WINDOW = 64
"""Messages of one stream that may be in work at once."""


class DigitClassifier(pb_grpc.DigitClassifierServicer):
    """`digits.v1.DigitClassifier` on the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Classify(  # type: ignore[override] # bytes: see wire.py
        self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyResponse]
    ) -> bytes:
        """Answer one request, with the bytes of a `ClassifyResponse`."""
        return await self._classify(request, _deadline(context))

    async def ClassifyStream(  # type: ignore[override] # the stub wants a generator; those leak tasks when cancelled
        self,
        requests: AsyncIterator[pb.ClassifyStreamRequest | ServerError],
        context: grpc.aio.ServicerContext[pb.ClassifyStreamRequest, pb.ClassifyStreamResponse],
    ) -> None:
        """Answer the messages of a stream, in order, each with its answer or its own error.

        Up to `STREAM_WINDOW` messages are worked on at once, so that they can share batches; further ones are not
        read before the caller has taken the oldest answer.
        """
        deadline = _deadline(context)
        answers: asyncio.Queue[asyncio.Task[bytes | pb.ClassifyStreamResponse] | None] = asyncio.Queue(STREAM_WINDOW)

        async def read() -> None:
            async for message in requests:
                await answers.put(tasks.create_task(self._answer(message, deadline)))
            await answers.put(None)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            while task := await answers.get():
                await context.write(await task)  # type: ignore[arg-type] # bytes: see wire.py

    async def ListModels(self, _request: pb.ListModelsRequest, _context: object) -> pb.ListModelsResponse:
        """List what can be asked for."""
        return converters.models(self._registry)

    async def _classify(self, request: pb.ClassifyRequest, deadline: float) -> bytes:
        model = self._registry.get(request.model, request.version)
        converters.options(request, len(model.package.labels))
        outcomes = await model.batcher.submit(converters.images(request), deadline=deadline)
        return converters.response(request, model, outcomes)

    async def _answer(
        self, message: pb.ClassifyStreamRequest | ServerError, deadline: float
    ) -> bytes | pb.ClassifyStreamResponse:
        try:
            if isinstance(message, ServerError):
                raise message
            return wire.stream_response(await self._classify(message.request, deadline))
        except Exception as error:  # noqa: BLE001 - one message's fault must not end the stream
            fault = public(error)
            return pb.ClassifyStreamResponse(error=pb.StreamError(code=fault.code.value[0], message=fault.message))


def _deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Return when the RPC's caller stops listening, on the monotonic clock; infinity if it never does."""
    remaining = context.time_remaining()  # without a deadline: None, or on some transports a number of centuries
    return float("inf") if remaining is None or remaining > NO_DEADLINE_S else time.monotonic() + remaining
