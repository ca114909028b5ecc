"""What Triton's tools ask beside the standard: how a model is served, what it has answered, what is on disk."""

from __future__ import annotations

from collections.abc import Mapping

from digits.v1 import classifier_pb2
from digits_server.api import messages, tensors
from digits_server.models.registry import Registry, ServedModel
from open_inference.v2 import inference_pb2 as pb

NAMES = ("model_configuration", "model_repository", "statistics")
"""What Triton calls them."""
STATES = {classifier_pb2.MODEL_STATE_SERVING: "READY", classifier_pb2.MODEL_STATE_LOADING: "LOADING"}
"""Triton's words; all else is `UNAVAILABLE`."""


def config(model: ServedModel) -> pb.ModelConfig:
    """Return how a model is served."""
    metadata = tensors.metadata(model, [])
    return pb.ModelConfig(
        name=metadata.name,
        platform=metadata.platform,
        backend="onnxruntime",
        max_batch_size=model.batcher.max_queue,
        input=[pb.ModelInput(name=it.name, data_type=_type(it.datatype), dims=it.shape[1:]) for it in metadata.inputs],
        output=[
            pb.ModelOutput(name=it.name, data_type=_type(it.datatype), dims=it.shape[1:]) for it in metadata.outputs
        ],
        dynamic_batching=pb.ModelDynamicBatching(preferred_batch_size=[model.batcher.max_batch_size]),
    )


def _type(datatype: str) -> pb.DataType.ValueType:
    return pb.DataType.Value(f"TYPE_{datatype}")


def statistics(model: ServedModel, totals: Mapping[str, float]) -> pb.ModelStatistics:
    """Return what a model has answered so far.

    Args:
        model: The model; its versions are counted together.
        totals: The sums of its metrics' samples, by name; those without samples may be missing.
    """
    requests, runs, images, queue_s, run_s = (
        totals.get(f"digits_{name}", 0.0)
        for name in (
            *("queue_seconds_count", "inference_seconds_count", "batch_size_sum"),
            *("queue_seconds_sum", "inference_seconds_sum"),
        )
    )
    # Requests wait for the whole run that they share, and tools divide by the number of requests.
    compute_s = run_s / max(runs, 1) * requests

    def duration(seconds: float) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=int(requests), ns=round(seconds * 1e9))

    return pb.ModelStatistics(
        name=model.package.name,
        version=model.package.version,
        inference_count=int(images),
        execution_count=int(runs),
        inference_stats=pb.InferStatistics(
            success=duration(queue_s + compute_s),
            queue=duration(queue_s),
            compute_input=duration(0),
            compute_infer=duration(compute_s),
            compute_output=duration(0),
        ),
    )


def index(registry: Registry, *, only_ready: bool) -> pb.RepositoryIndexResponse:
    """Return every version on disk, or those that serve."""
    entry = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(
        models=[
            entry(name=it.name, version=it.version, state=STATES.get(it.state, "UNAVAILABLE"), reason=it.reason)
            for it in messages.models(registry).models
            if it.state == classifier_pb2.MODEL_STATE_SERVING or not only_ready
        ]
    )
