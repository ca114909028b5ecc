"""What the service does: message to array, array to batcher, answer to message. Faults are raised, not handled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits.v1 import columns_pb2 as columns
from digits_server.api import codec, messages
from digits_server.api.codec import ClassifyRequest
from digits_server.errors import ServerError
from digits_server.inference.engine import Images, Predictions
from digits_server.inference.request import Job, Outcome
from digits_server.models.registry import Registry, ServedModel
from digits_server.rpc import context as calls

SERVICE = pb.DESCRIPTOR.services_by_name["DigitClassifier"].full_name
STREAM_WINDOW = 128
"""Messages of one stream that may be in work at once."""
STREAM_ROWS = 512
"""Images of one stream in work from which on no more are read: a stream waits for its own and fills no queue."""

if TYPE_CHECKING:
    from digits_server.rpc.context import Context, Handler


class DigitClassifier(pb_grpc.DigitClassifierServicer):
    """`digits.v1.DigitClassifier` on the models of a registry.

    Args:
        registry: The models.
        refusal: Returns what a caller is told of an error with a request.
    """

    def __init__(self, registry: Registry, refusal: Callable[[Exception, object], ServerError]) -> None:
        self._registry = registry
        self._refusal = refusal

    async def Classify(  # type: ignore[override] # the twin's messages, the same on the wire
        self, request: ClassifyRequest, context: Context
    ) -> columns.ClassifyResponse:
        """Answer one request."""
        admitted = self._admit(request, calls.deadline(context))
        outcome = await admitted.outcome()
        calls.tell(context, request, admitted.model.package, outcome)
        return messages.response(request, admitted.model, outcome)

    async def ClassifyStream(  # type: ignore[override] # the stub wants a generator; those leak tasks when cancelled
        self, requests: AsyncIterator[ClassifyRequest | ServerError], context: Context
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
                    await context.write(await self._stream_response(admitted))
                    rows -= _rows(admitted)
                    has_room.set()
        finally:
            while not window.empty():  # the stream was cancelled, or its connection is gone
                _leave(window.get_nowait())

    async def ListModels(self, _request: pb.ListModelsRequest, _context: object) -> pb.ListModelsResponse:
        """List what can be asked for."""
        return messages.models(self._registry)

    def _admit(self, request: ClassifyRequest, deadline: float) -> _Admitted:
        model = self._registry.get(request.model, request.version)
        messages.options(request, len(model.package.labels))
        job: Job[Images, Predictions] = Job(messages.images(request), deadline)
        model.batcher.admit(job)
        return _Admitted(request, model, job)

    def _try_to_admit(self, message: ClassifyRequest | ServerError, deadline: float) -> _Admitted | ServerError:
        """Return the admitted request, or the error that answers it: one message's fault must not end the stream."""
        if isinstance(message, ServerError):
            return message
        try:
            return self._admit(message, deadline)
        except Exception as error:  # noqa: BLE001
            return self._refusal(error, message)

    async def _stream_response(self, admitted: _Admitted | ServerError) -> columns.ClassifyStreamResponse:
        if isinstance(admitted, _Admitted):
            try:
                response = messages.response(admitted.request, admitted.model, await admitted.outcome())
                return columns.ClassifyStreamResponse(response=response)
            except Exception as error:  # noqa: BLE001 - as in `_try_to_admit`
                admitted = self._refusal(error, admitted.request)
        return columns.ClassifyStreamResponse(
            error=columns.StreamError(code=admitted.code.value[0], message=admitted.message)
        )


def add_to_server(servicer: DigitClassifier, server: Any) -> None:
    """Add the service, as the generated function does, but with messages of columns on the way in and out."""
    handlers: dict[str, Handler] = {
        "Classify": grpc.unary_unary_rpc_method_handler(
            servicer.Classify, codec.request, columns.ClassifyResponse.SerializeToString
        ),
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(
            servicer.ClassifyStream, codec.stream_request, columns.ClassifyStreamResponse.SerializeToString
        ),
        "ListModels": grpc.unary_unary_rpc_method_handler(
            servicer.ListModels, pb.ListModelsRequest.FromString, pb.ListModelsResponse.SerializeToString
        ),
    }
    server.add_registered_method_handlers(SERVICE, handlers)


@dataclass(frozen=True)
class _Admitted:
    """A request whose rows are in a batcher; to be left once."""

    request: ClassifyRequest
    model: ServedModel
    job: Job[Images, Predictions]

    async def outcome(self) -> Outcome[Predictions]:
        """Return what becomes of it."""
        try:
            return messages.joined(await self.job.settled())
        finally:
            self.leave()

    def leave(self) -> None:
        """Give up, or be done."""
        self.model.batcher.release(self.job)


def _rows(admitted: _Admitted | ServerError) -> int:
    return admitted.job.size if isinstance(admitted, _Admitted) else 0


def _leave(admitted: _Admitted | ServerError | None) -> None:
    if isinstance(admitted, _Admitted):
        admitted.leave()
