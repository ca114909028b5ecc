"""What the services do: message to array, array to batcher, answer to message. Faults are raised, not handled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_server.api import codec as wire
from digits_server.api import messages as converters
from digits_server.api.messages import Request
from digits_server.errors import ServerError, public
from digits_server.inference.engine import Images, Predictions
from digits_server.inference.request import Job
from digits_server.models.registry import Registry, ServedModel
from digits_server.rpc import context as calls

SERVICE = pb.DESCRIPTOR.services_by_name["DigitClassifier"].full_name
STREAM_WINDOW = 128
"""Messages of one stream that may be in work at once."""
STREAM_ROWS = 512
"""Images of one stream in work from which on no more are read: a stream waits for its own and fills no queue."""


HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])
if TYPE_CHECKING:  # generic only in the stubs
    Context = grpc.aio.ServicerContext[Any, Any]


def reads(deserialize: Callable[[bytes], Request]) -> Callable[[HandlerT], HandlerT]:
    """Let a handler's messages be read by `deserialize` instead of protobuf."""

    def mark(handler: HandlerT) -> HandlerT:
        handler.reads = deserialize  # type: ignore[attr-defined]
        return handler

    return mark


class DigitClassifier(pb_grpc.DigitClassifierServicer):
    """`digits.v1.DigitClassifier` on the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @reads(wire.request)
    async def Classify(  # type: ignore[override] # answers with bytes
        self, request: Request, context: Context
    ) -> bytes:
        """Answer one request."""
        return await self._admit(request, calls.deadline(context), context)

    @reads(wire.stream_request)
    async def ClassifyStream(  # type: ignore[override] # the stub wants a generator; those leak tasks when cancelled
        self, requests: AsyncIterator[Request | ServerError], context: Context
    ) -> None:
        """Answer the messages of a stream, in order, each with its answer or its own error.

        Up to `STREAM_WINDOW` messages, or `STREAM_ROWS` images, are worked on at once, so that they can share batches;
        further ones are not read before the caller has taken the oldest answer.
        """
        deadline = calls.deadline(context)
        window: asyncio.Queue[Answering | ServerError | None] = asyncio.Queue(STREAM_WINDOW)
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
                    await context.write(await _stream_response(admitted))
                    rows -= _rows(admitted)
                    has_room.set()
        finally:
            while not window.empty():  # the stream was cancelled, or its connection is gone
                _leave(window.get_nowait())

    async def ListModels(self, _request: pb.ListModelsRequest, _context: object) -> pb.ListModelsResponse:
        """List what can be asked for."""
        return converters.models(self._registry)

    def _admit(self, request: Request, deadline: float, context: Context | None = None) -> Answering:
        model = self._registry.get(request.model, request.version)
        converters.options(request, len(model.package.labels))
        answering = Answering(request, model, deadline, context)
        model.batcher.admit(answering)
        return answering

    def _try_to_admit(self, message: Request | ServerError, deadline: float) -> Answering | ServerError:
        """Return the admitted request, or the error that answers it: one message's fault must not end the stream."""
        if isinstance(message, ServerError):
            return message
        try:
            return self._admit(message, deadline)
        except Exception as error:  # noqa: BLE001
            return public(error, message)


class Answering(Job[Images, Predictions]):
    """A request on its way through a batcher, to be awaited or left, once."""

    __slots__ = ("_context", "_model", "_request")

    def __init__(self, request: Request, model: ServedModel, deadline: float, context: Context | None) -> None:
        super().__init__(converters.images(request), deadline)
        self._request, self._model, self._context = request, model, context

    def __await__(self) -> Generator[None, None, bytes]:
        return self._answer().__await__()

    async def _answer(self) -> bytes:
        try:
            outcome = converters.joined(await self.settled())
        finally:
            self.leave()
        if self._request.request_id and self._context:
            self._context.set_trailing_metadata(calls.trailers(self._request, self._model.package, outcome))
        return converters.response(self._request, self._model, outcome)

    def leave(self) -> None:
        """Give up, or be done."""
        self._model.batcher.release(self)


def _rows(admitted: Answering | ServerError) -> int:
    return admitted.size if isinstance(admitted, Answering) else 0


def _leave(admitted: Answering | ServerError | None) -> None:
    if isinstance(admitted, Answering):
        admitted.leave()


async def _stream_response(admitted: Answering | ServerError) -> bytes:
    try:
        if isinstance(admitted, ServerError):
            raise admitted
        return wire.stream_response(await admitted)
    except Exception as error:  # noqa: BLE001 - as in `_try_to_admit`
        fault = public(error)
        status = pb.StreamError(code=fault.code.value[0], message=fault.message)
        return pb.ClassifyStreamResponse(error=status).SerializeToString()
