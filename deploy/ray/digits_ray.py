"""Serves `digits.v1.DigitClassifier` through Ray Serve: the server's own models, batcher and errors in its replicas.

`serve run deploy/ray/serve.yaml` starts it where `digits-server` and `ray[serve]` are installed and PYTHONPATH has this
folder; docs/ray.md says when that is worth it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from digits.v1 import classifier_pb2 as pb
from digits_server.api.classifier import DigitClassifier
from digits_server.config import Config, available_cpus
from digits_server.errors import public
from digits_server.inference.adaptive import Concurrency
from digits_server.inference.batcher import Batcher
from digits_server.inference.engine import Images, Predictions
from digits_server.models.package import Package
from digits_server.models.registry import Registry, ServedModel
from digits_server.models.repository import Repository
from digits_server.rpc.status import explain

LONGEST_BATCH_S = 0.001
"""Batches run on the replica's event loop, so none may take longer."""


class Call:
    """As much of a call's context as the servicer asks for."""

    def __init__(self, grpc_context: RayServegRPCContext | None = None) -> None:
        self._grpc_context = grpc_context
        self.answers: asyncio.Queue[Message | None] = asyncio.Queue(1)
        self.write = self.answers.put

    def set_trailing_metadata(self, trailers: Iterable[tuple[str, str | bytes]]) -> None:
        """Hand on what the trailers tell; Ray wants a list."""
        if self._grpc_context:
            self._grpc_context.set_trailing_metadata([*trailers])  # type: ignore[list-item] # bytes are fine

    def time_remaining(self) -> None:
        """Return None, no deadline: Ray keeps the caller's to itself and hands on `request_timeout_s` at most."""


@serve.deployment(max_ongoing_requests=256, max_queued_requests=4096, graceful_shutdown_timeout_s=Config.grace_s)
class Digits:
    """A replica: answers the RPCs that the proxies of all nodes hand to it, by their names.

    Args:
        models: Folder of model packages, on each node.
        default_model: Model that answers requests that name none.
        reload_s: Time between looks for new versions in the folder.

    Raises:
        ModelRefused: There is no model to serve.
    """

    async def __init__(  # type: ignore[misc] # Ray awaits it, on the event loop that the replica will run on
        self, models: str, default_model: str = Config.default_model, reload_s: float = Config.reload_s
    ) -> None:
        self._registry = Registry(default_model, _served)
        repository = Repository(Path(models), self._registry, threads=1, every_s=reload_s, on_change=_nothing)
        await repository.poll(is_told=True)
        self._registry.settle_default(Path(models))
        self._classifier = DigitClassifier(self._registry, public)
        self._watching = asyncio.create_task(repository.run())

    async def Classify(self, request: pb.ClassifyRequest, grpc_context: RayServegRPCContext) -> pb.ClassifyResponse:
        """Answer one request."""
        call: Any = Call(grpc_context)
        try:
            answer = await self._classifier.Classify(request, call)
            return pb.ClassifyResponse.FromString(answer.SerializeToString())  # of columns: the same on the wire
        except Exception as error:  # noqa: BLE001 - the border: nothing leaves unmapped
            refusal = public(error, request)
            call.set_trailing_metadata(explain(refusal))
            grpc_context.set_code(refusal.code)
            grpc_context.set_details(refusal.message)
            return pb.ClassifyResponse()  # not sent: the status is an error

    async def ClassifyStream(
        self, requests: gRPCInputStream[pb.ClassifyStreamRequest]
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        """Answer the messages of a stream, in order."""
        call: Any = Call()

        async def answer() -> None:
            try:
                await self._classifier.ClassifyStream((message.request async for message in requests), call)
            finally:
                await call.answers.put(None)

        answering = asyncio.create_task(answer())
        try:
            while (answered := await call.answers.get()) is not None:
                yield pb.ClassifyStreamResponse.FromString(answered.SerializeToString())
            await answering
        finally:
            answering.cancel()

    async def ListModels(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """List what can be asked for."""
        return await self._classifier.ListModels(request, None)

    async def Check(self, _request: HealthCheckRequest) -> HealthCheckResponse:
        """Say that there is a replica that serves; without one, Ray itself answers UNAVAILABLE."""
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)


def _served(package: Package) -> ServedModel:
    batcher: Batcher[Images, Predictions] = Batcher(
        package.engine.predict,
        max_batch_size=package.cost.best_batch_size(LONGEST_BATCH_S),
        max_queue=Config.max_queue,
        cost=package.cost,
        expect=Concurrency(available_cpus()),
    )
    return ServedModel(package, batcher)


async def _nothing() -> None:
    """Do nothing on a change of the models: nobody but `ListModels` asks for it."""


def app(arguments: dict[str, Any]) -> serve.Application:
    """Return the application, as serve.yaml asks for it."""
    return Digits.bind(**arguments)  # type: ignore[attr-defined] # it is a deployment now
