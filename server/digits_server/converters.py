"""Messages to arrays and back, and all that can be wrong with a message."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from digits.v1 import classifier_pb2 as pb
from digits_server import wire
from digits_server.engine import PIXELS, Images, Predictions
from digits_server.errors import InvalidArgument
from digits_server.jobs import Outcome
from digits_server.registry import RefusedModel, Registry, ServedModel

MAX_REQUEST_ID = 128


def images(request: pb.ClassifyRequest) -> Images:
    """Return the (n, 784) images of a request, n >= 1.

    Raises:
        InvalidArgument: There are none, there are both kinds, or their length or values are wrong.
    """
    if request.pixels:
        if request.vectors:
            raise InvalidArgument("vectors", "given beside pixels; give one of the two")
        _check_length("pixels", len(request.pixels), "bytes")
        return np.frombuffer(request.pixels, np.uint8).reshape(-1, PIXELS)
    if not request.vectors:
        raise InvalidArgument(
            "pixels", f"no images: pixels and vectors are both empty; give n x {PIXELS} values of one"
        )
    _check_length("vectors", len(request.vectors), "numbers")
    vectors = np.array(request.vectors, np.float32)
    if not ((vectors >= 0) & (vectors <= 1)).all():  # NaN compares false
        at = int(np.argmin((vectors >= 0) & (vectors <= 1)))
        raise InvalidArgument("vectors", f"element {at} is {vectors[at]:g}; allowed is 0 to 1")
    return vectors.reshape(-1, PIXELS)


def options(request: pb.ClassifyRequest, classes: int) -> None:
    """Check what else a request asks for.

    Raises:
        InvalidArgument: An option is out of its range.
    """
    if request.top_k > classes:
        raise InvalidArgument("top_k", f"is {request.top_k}; allowed is 0 to {classes}")
    request_id = request.request_id
    if request_id and (len(request_id) > MAX_REQUEST_ID or not (request_id.isascii() and request_id.isprintable())):
        raise InvalidArgument(
            "request_id",
            f"is {request_id[:MAX_REQUEST_ID]!r}, {len(request_id)} characters; allowed are up to {MAX_REQUEST_ID} "
            "printable ASCII characters",
        )


def response(request: pb.ClassifyRequest, model: ServedModel, outcomes: Sequence[Outcome[Predictions]]) -> bytes:
    """Return the answer to a request, as bytes, from what its batch, or batches, gave."""
    outcome = outcomes[0] if len(outcomes) == 1 else _whole(outcomes)
    fixed = model.signature
    if request.request_id or request.top_k:
        fixed += _extras(request, outcome).SerializeToString()
    return wire.response(fixed, outcome, probabilities=not request.omit_probabilities)


def _whole(parts: Sequence[Outcome[Predictions]]) -> Outcome[Predictions]:
    answers = Predictions.join([(part.answers, part.start, part.end) for part in parts])
    return Outcome(
        answers,
        start=0,
        end=len(answers),
        queue_s=max(part.queue_s for part in parts),
        inference_s=sum(part.inference_s for part in parts),
        batch_size=max(part.batch_size for part in parts),
    )


def _extras(request: pb.ClassifyRequest, outcome: Outcome[Predictions]) -> pb.ClassifyResponse:
    probabilities = outcome.answers.probabilities[outcome.start : outcome.end]  # (n, classes)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : request.top_k]
    return pb.ClassifyResponse(
        request_id=request.request_id,
        top_digits=best.ravel().tolist(),
        top_confidences=np.take_along_axis(probabilities, best, axis=1).ravel().tolist(),
    )


def models(registry: Registry) -> pb.ListModelsResponse:
    """Return the list of models, served and refused."""
    default = registry.get()
    entries = [_served(model, is_default=model is default) for model in registry.all()]
    entries += [_refused(model) for model in registry.refused]
    return pb.ListModelsResponse(models=sorted(entries, key=lambda model: (model.name, int(model.version))))


def _check_length(field: str, length: int, unit: str) -> None:
    if length % PIXELS:
        raise InvalidArgument(field, f"{length} {unit}; allowed is a multiple of {PIXELS}, one 28 x 28 image each")


def _served(model: ServedModel, *, is_default: bool) -> pb.Model:
    package = model.package
    return pb.Model(
        name=package.name,
        version=package.version,
        is_default=is_default,
        state=pb.MODEL_STATE_SERVING,
        labels=package.labels,
        test_accuracy=package.test_accuracy,
        batch_costs=[
            pb.BatchCost(batch_size=size, seconds=seconds)
            for size, seconds in zip(package.cost.sizes, package.cost.seconds, strict=True)
        ],
        batching_gain=package.cost.batching_gain,
    )


def _refused(model: RefusedModel) -> pb.Model:
    return pb.Model(name=model.name, version=model.version, state=pb.MODEL_STATE_REFUSED, reason=model.reason)
