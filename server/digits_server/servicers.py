"""What the services do: message to array, array to batcher, answer to message. Faults are raised, not handled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_server import converters
from digits_server.errors import ServerError, public
from digits_server.registry import Registry

SERVICE = pb.DESCRIPTOR.services_by_name["DigitClassifier"].full_name
STREAM_WINDOW = 64
"""Messages of one stream that may be in work at once."""


class DigitClassifier(pb_grpc.DigitClassifierServicer):
    """`digits.v1.DigitClassifier` on the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Classify(
        self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyResponse]
    ) -> pb.ClassifyResponse:
        """Answer one request."""
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
        answers: asyncio.Queue[asyncio.Task[pb.ClassifyStreamResponse] | None] = asyncio.Queue(STREAM_WINDOW)

        async def read() -> None:
            async for message in requests:
                await answers.put(tasks.create_task(self._answer(message, deadline)))
            await answers.put(None)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            while task := await answers.get():
                await context.write(await task)

    async def ListModels(self, _request: pb.ListModelsRequest, _context: object) -> pb.ListModelsResponse:
        """List what can be asked for."""
        return converters.models(self._registry)

    async def _classify(self, request: pb.ClassifyRequest, deadline: float) -> pb.ClassifyResponse:
        model = self._registry.get(request.model, request.version)
        converters.options(request, len(model.package.labels))
        outcomes = await model.batcher.submit(converters.images(request), deadline=deadline)
        return converters.response(request, model, outcomes)

    async def _answer(
        self, message: pb.ClassifyStreamRequest | ServerError, deadline: float
    ) -> pb.ClassifyStreamResponse:
        try:
            if isinstance(message, ServerError):
                raise message
            return pb.ClassifyStreamResponse(response=await self._classify(message.request, deadline))
        except Exception as error:  # noqa: BLE001 - one message's fault must not end the stream
            fault = public(error)
            return pb.ClassifyStreamResponse(error=pb.StreamError(code=fault.code.value[0], message=fault.message))


def _deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Return when the RPC's caller stops listening, on the monotonic clock; infinity if it never does."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining
