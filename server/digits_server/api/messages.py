"""Messages to arrays and back, and all that can be wrong with a message."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from digits.v1 import classifier_pb2 as pb
from digits.v1 import columns_pb2 as columns
from digits_server.api import codec
from digits_server.api.codec import ClassifyRequest
from digits_server.errors import MAX_REQUEST_ID, InvalidArgument, quoted
from digits_server.inference.engine import PIXELS, Images, Predictions
from digits_server.inference.request import Outcome
from digits_server.models.package import Key
from digits_server.models.registry import Note, Registry, ServedModel
from digits_server.rpc.status import is_id


def images(request: ClassifyRequest) -> Images:
    """Return the (n, 784) images of a request, n >= 1.

    Raises:
        InvalidArgument: There are none, there are both kinds, or their length or values are wrong.
    """
    pixels, vectors = request.pixels, request.vectors
    if pixels:
        if vectors:
            raise InvalidArgument("vectors", "given beside pixels; give one of the two")
        count = _count("pixels", len(pixels), "bytes")
        return np.ndarray((count, PIXELS), np.uint8, pixels)
    if not vectors:
        raise InvalidArgument(
            "pixels", f"no images: pixels and vectors are both empty; give n x {PIXELS} values of one"
        )
    numbers = codec.vectors(request)
    count = _count("vectors", len(numbers), "numbers")
    check_range("vectors", numbers)
    return numbers.reshape(count, PIXELS)


def check_range(field: str, values: npt.NDArray[np.number]) -> None:
    """Check that numbers, (n,) of them, are in [0, 1].

    Raises:
        InvalidArgument: One is not.
    """
    if not (values.min() >= 0 and values.max() <= 1):  # NaN would be both, and compares false
        at = int(((values >= 0) & (values <= 1)).argmin())
        raise InvalidArgument(field, f"element {at} is {values[at]:g}; allowed is 0 to 1")


def options(request: ClassifyRequest, classes: int) -> None:
    """Check what else a request asks for.

    Raises:
        InvalidArgument: An option is out of its range.
    """
    if request.top_k > classes:
        raise InvalidArgument("top_k", f"is {request.top_k}; allowed is 0 to {classes}")
    if request.request_id:
        check_id("request_id", request.request_id)


def check_id(field: str, value: str) -> None:
    """Check the caller's name for a request, which may be empty.

    Raises:
        InvalidArgument: It is too long, or would not pass unchanged through headers and logs.
    """
    if not is_id(value):
        raise InvalidArgument(
            field,
            f"is {quoted(value)}, {len(value)} characters; allowed are up to {MAX_REQUEST_ID} printable ASCII "
            "characters",
        )


def response(request: ClassifyRequest, model: ServedModel, outcome: Outcome[Predictions]) -> columns.ClassifyResponse:
    """Return the answer to a request from what became of it."""
    answer = codec.response(outcome, probabilities=not request.omit_probabilities)
    answer.model, answer.version = model.package.name, model.package.version
    answer.request_id = request.request_id
    if request.top_k:
        probabilities = outcome.answers.probabilities[outcome.start : outcome.end]  # (n, classes)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : request.top_k]
        answer.top_digits = codec.numbers(best, classes=probabilities.shape[1])
        answer.top_confidences = np.take_along_axis(probabilities, best, axis=1).tobytes()
    return answer


def joined(parts: Sequence[Outcome[Predictions]]) -> Outcome[Predictions]:
    """Return what became of a request from what became of its parts, at least one, in order."""
    if len(parts) == 1:
        return parts[0]
    answers = Predictions.join([(part.answers, part.start, part.end) for part in parts])
    return Outcome(
        answers,
        start=0,
        end=len(answers),
        queue_s=max(part.queue_s for part in parts),
        inference_s=sum(part.inference_s for part in parts),
        batch_size=max(part.batch_size for part in parts),
    )


def models(registry: Registry) -> pb.ListModelsResponse:
    """Return the list of models, those that serve and those that do not."""
    default = registry.get() if registry.has_default else None
    entries = {key: _noted(key, note) for key, note in registry.notes.items()}
    for model in registry.all():
        entry = _served(model, is_default=model is default)
        entry.reason = entries[model.package.key].reason if model.package.key in entries else model.package.remark
        entries[model.package.key] = entry
    misplaced = [
        pb.Model(name=name, version=version, state=pb.MODEL_STATE_REFUSED, reason=reason)
        for (name, version), reason in sorted(registry.misplaced.items())
    ]
    return pb.ListModelsResponse(models=[entry for _, entry in sorted(entries.items())] + misplaced)


def _count(field: str, length: int, unit: str) -> int:
    if length % PIXELS:
        raise InvalidArgument(field, f"{length} {unit}; allowed is a multiple of {PIXELS}, one 28 x 28 image each")
    return length // PIXELS


def _served(model: ServedModel, *, is_default: bool) -> pb.Model:
    package = model.package
    return pb.Model(
        name=package.name,
        version=package.version,
        is_default=is_default,
        state=pb.MODEL_STATE_SERVING,
        labels=package.labels,
        test_accuracy=package.test_accuracy,
        dataset=package.dataset,
        batch_costs=[
            pb.BatchCost(batch_size=size, seconds=seconds)
            for size, seconds in zip(package.cost.sizes, package.cost.seconds, strict=True)
        ],
        batching_gain=package.cost.batching_gain,
        verdict=package.cost.summary,
    )


def _noted(key: Key, note: Note) -> pb.Model:
    return pb.Model(name=key.name, version=str(key.version), state=note.state, reason=note.reason)
