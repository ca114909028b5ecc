"""What the services do: message to array, array to batcher, answer to message. Faults are raised, not handled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_server import calls, converters, wire
from digits_server.batcher import Pending
from digits_server.engine import Images, Predictions
from digits_server.errors import ServerError, public
from digits_server.jobs import Outcome
from digits_server.registry import Registry, ServedModel

SERVICE = pb.DESCRIPTOR.services_by_name["DigitClassifier"].full_name
STREAM_WINDOW = 64
"""Messages of one stream that may be in work at once."""
STREAM_ROWS = 512
"""Images of one stream in work from which on no more are read: a stream waits for its own and fills no queue."""


class DigitClassifier(pb_grpc.DigitClassifierServicer):
    """`digits.v1.DigitClassifier` on the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Classify(  # type: ignore[override] # bytes: see wire.py
        self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyResponse]
    ) -> bytes:
        """Answer one request, with the bytes of a `ClassifyResponse`."""
        admitted = self._admit(request, calls.deadline(context))
        outcome = await admitted.outcome()
        if request.request_id:
            context.set_trailing_metadata(calls.trailers(request, admitted.model.package, outcome))
        return converters.response(request, admitted.model, outcome)

    async def ClassifyStream(  # type: ignore[override] # the stub wants a generator; those leak tasks when cancelled
        self,
        requests: AsyncIterator[pb.ClassifyStreamRequest | ServerError],
        context: grpc.aio.ServicerContext[pb.ClassifyStreamRequest, pb.ClassifyStreamResponse],
    ) -> None:
        """Answer the messages of a stream, in order, each with its answer or its own error.

        Up to `STREAM_WINDOW` messages, or `STREAM_ROWS` images, are worked on at once, so that they can share batches;
        further ones are not read before the caller has taken the oldest answer.
        """
        deadline = calls.deadline(context)
        window: asyncio.Queue[_Admitted | ServerError | None] = asyncio.Queue(STREAM_WINDOW)
        rows = 0
        has_room = asyncio.Event()

        async def read() -> None:
            nonlocal rows
            async for message in requests:
                admitted = self._try_to_admit(message, deadline)
                rows += _rows(admitted)
                try:
                    await window.put(admitted)
                except asyncio.CancelledError:
                    _leave(admitted)
                    raise
                while rows >= STREAM_ROWS:
                    has_room.clear()
                    await has_room.wait()
            await window.put(None)

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(read())
                while admitted := await window.get():
                    await context.write(await _stream_response(admitted))  # type: ignore[arg-type] # bytes: see wire.py
                    rows -= _rows(admitted)
                    has_room.set()
        finally:
            while not window.empty():  # the stream was cancelled, or its connection is gone
                _leave(window.get_nowait())

    async def ListModels(self, _request: pb.ListModelsRequest, _context: object) -> pb.ListModelsResponse:
        """List what can be asked for."""
        return converters.models(self._registry)

    def _admit(self, request: pb.ClassifyRequest, deadline: float) -> _Admitted:
        model = self._registry.get(request.model, request.version)
        converters.options(request, len(model.package.labels))
        images = converters.images(request)
        return _Admitted(request, model, len(images), model.batcher.admit(images, deadline=deadline))

    def _try_to_admit(
        self, message: pb.ClassifyStreamRequest | ServerError, deadline: float
    ) -> _Admitted | ServerError:
        """Return the admitted request, or the error that answers it: one message's fault must not end the stream."""
        if isinstance(message, ServerError):
            return message
        try:
            return self._admit(message.request, deadline)
        except Exception as error:  # noqa: BLE001
            return public(error, message.request)


@dataclass(slots=True)
class _Admitted:
    """A request on its way through a batcher."""

    request: pb.ClassifyRequest
    model: ServedModel
    rows: int
    pending: Pending[Images, Predictions]

    async def outcome(self) -> Outcome[Predictions]:
        return converters.joined(await self.pending.outcomes())


def _rows(admitted: _Admitted | ServerError) -> int:
    return admitted.rows if isinstance(admitted, _Admitted) else 0


def _leave(admitted: _Admitted | ServerError | None) -> None:
    if isinstance(admitted, _Admitted):
        admitted.pending.leave()


async def _stream_response(admitted: _Admitted | ServerError) -> bytes:
    try:
        if isinstance(admitted, ServerError):
            raise admitted
        response = converters.response(admitted.request, admitted.model, await admitted.outcome())
        return wire.stream_response(response)
    except Exception as error:  # noqa: BLE001 - as in `_try_to_admit`
        fault = public(error)
        status = pb.StreamError(code=fault.code.value[0], message=fault.message)
        return pb.ClassifyStreamResponse(error=status).SerializeToString()
