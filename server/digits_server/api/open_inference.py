"""The Open Inference Protocol on the same models, batchers and errors as Digits' own service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from digits_server.api import extensions, tensors
from digits_server.api import messages as converters
from digits_server.errors import InvalidArgument, NotFound, quoted
from digits_server.models.registry import Registry, ServedModel
from digits_server.rpc import context as calls
from open_inference.v2 import inference_pb2 as pb
from open_inference.v2 import inference_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from digits_server.rpc.context import Context

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class InferenceService(pb_grpc.GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService` on the models of a registry.

    Args:
        registry: The models.
        is_ready: Whether the server is what it should be, as the health service tells.
        totals: Returns what the server has measured so far, by model and name; called on any thread.
    """

    def __init__(
        self, registry: Registry, is_ready: Callable[[], bool], totals: Callable[[], Mapping[str, Mapping[str, float]]]
    ) -> None:
        self._registry = registry
        self._is_ready = is_ready
        self._totals = totals
        self._metadata = pb.ServerMetadataResponse(
            name="digits-server", version=version("digits-server"), extensions=extensions.NAMES
        )

    async def ServerLive(self, _request: pb.ServerLiveRequest, _context: object) -> pb.ServerLiveResponse:
        """Say yes."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: pb.ServerReadyRequest, _context: object) -> pb.ServerReadyResponse:
        """Say whether the server is ready; a drain refuses this call like every other."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, _context: object) -> pb.ModelReadyResponse:
        """Say whether a model, or one version, can be asked."""
        try:
            self._model("name", request.name, request.version)
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, _request: pb.ServerMetadataRequest, _context: object) -> pb.ServerMetadataResponse:
        """Name the server and its version."""
        return self._metadata

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _context: object) -> pb.ModelMetadataResponse:
        """Tell a model's versions, input and outputs."""
        model = self._model("name", request.name, request.version)
        versions = [served.package.version for served in self._registry.all() if served.package.name == request.name]
        return tensors.metadata(model, versions)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run a model: `Classify` in tensors."""
        model = self._model("model_name", request.model_name, request.model_version)
        converters.check_id("id", request.id)
        outputs = tensors.outputs(request)
        outcomes = await model.batcher.submit(tensors.images(request), deadline=calls.deadline(context))
        outcome = converters.joined(outcomes)
        calls.tell(context, request, model.package, outcome)
        return tensors.response(request, outputs, model, outcome)

    async def ModelConfig(self, request: pb.ModelConfigRequest, _context: object) -> pb.ModelConfigResponse:
        """Tell how a model is served."""
        return pb.ModelConfigResponse(config=extensions.config(self._model("name", request.name, request.version)))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, _context: object) -> pb.ModelStatisticsResponse:
        """Tell what one model, or each, has answered so far."""
        asked = [
            self._registry.get(name, request.version)
            for name in ([request.name] if request.name else self._registry.names)
        ]
        totals = await asyncio.to_thread(self._totals)  # other processes may be asked
        return pb.ModelStatisticsResponse(
            model_stats=[extensions.statistics(it, totals.get(it.package.name, {})) for it in asked]
        )

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, _context: object) -> pb.RepositoryIndexResponse:
        """List the models on disk."""
        if request.repository_name:
            raise InvalidArgument(
                "repository_name", f"is {quoted(request.repository_name)}; allowed is '': there is one"
            )
        return extensions.index(self._registry, only_ready=request.ready)

    def _model(self, field: str, name: str, version: str) -> ServedModel:
        if not name:  # here names are not optional: nobody gets a model by mistake
            raise InvalidArgument(field, f"is empty; allowed are {self._registry.names}")
        return self._registry.get(name, version)
