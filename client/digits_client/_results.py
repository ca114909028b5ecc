"""What clients return, made from the columns of answers."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from grpc_health.v1 import health_pb2

from digits.v1 import classifier_pb2 as pb
from digits_client._codec import Columns


class Quality(enum.IntFlag):
    """What is odd about an image."""

    BLANK = pb.QUALITY_FLAG_BLANK
    """There is no ink."""
    INVERTED = pb.QUALITY_FLAG_INVERTED
    """Most of the image is ink: probably dark on bright."""
    OUT_OF_RANGE = pb.QUALITY_FLAG_OUT_OF_RANGE
    """There is far less or far more ink than in any training image."""
    LOW_CONFIDENCE = pb.QUALITY_FLAG_LOW_CONFIDENCE
    """The model abstains: it is not sure enough."""


@dataclass(frozen=True)
class Timing:
    """Time that a call spent in the server."""

    queue_s: float
    """From arrival until the batch ran, in seconds."""
    inference_s: float
    """Running the model on the batch, in seconds."""
    batch_size: int
    """Images in the batch, other callers' included."""


@dataclass(frozen=True)
class Prediction:
    """What one image shows."""

    digit: int
    """The class: 0 to 9 for a model of digits, 0 to its number of classes - 1 for others. `label` is its name."""
    confidence: float
    """Calibrated probability of `digit`."""
    probabilities: npt.NDArray[np.float32]
    """(classes,) one for each class."""
    quality: Quality
    """What is odd about the image; falsy if nothing is."""
    model: str
    version: str
    timing: Timing
    classes: tuple[str, ...] = ()
    """Labels of the model's classes, in the order of `probabilities`; empty if the server doesn't tell."""

    @property
    def label(self) -> str:
        """The label of `digit`: "7", or what the model calls that class; its number if the server doesn't tell."""
        return _label(self.classes, self.digit)


@dataclass(frozen=True)
class Predictions:
    """What n images show, as columns."""

    digits: npt.NDArray[np.unsignedinteger]
    """(n,) classes, 0 to 9 for a model of digits: uint8, and wider for models of more than 256 classes."""
    confidences: npt.NDArray[np.float32]
    """(n,) calibrated probabilities of `digits`."""
    probabilities: npt.NDArray[np.float32]
    """(n, classes) one for each class."""
    quality: npt.NDArray[np.unsignedinteger]
    """(n,) `Quality` bits."""
    model: str
    version: str
    classes: tuple[str, ...] = ()
    """Labels of the model's classes, in the order of `probabilities`; empty if the server doesn't tell."""

    @property
    def labels(self) -> list[str]:
        """The n labels of `digits`: see `Prediction.label`."""
        return [_label(self.classes, digit) for digit in self.digits.tolist()]

    def __len__(self) -> int:
        return len(self.digits)


@dataclass(frozen=True)
class Model:
    """One version of a model that a server knows."""

    name: str
    version: str
    is_default: bool
    is_serving: bool
    state: str
    """`serving`, `loading`, `shadow` (compared with the version before it), `refused`, or `unspecified`."""
    reason: str
    """Why it was refused, or how its trial goes. Of one that serves: what is wrong with newer files in its place."""
    test_accuracy: float
    """Share of its test images that it recognises, as its package states; 0 where that is unknown."""
    batching_gain: float
    """Images per second in batches over images per second alone, on that server."""
    batch_costs: Mapping[int, float]
    """Seconds that a run takes there, by images in it; empty for a model that is not serving."""
    labels: tuple[str, ...] = ()
    """What its classes are called, in the order of `probabilities`."""
    dataset: str = ""
    """Name of the images that `test_accuracy` was measured on, as its package states; empty where that is unknown."""


RELIST_S = 1.0
"""After which a version that the list does not name is looked for again: not at each answer."""


class Labels:
    """What the classes of each version are called, learned from lists of models."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}
        self._unlisted: dict[tuple[str, str], float] = {}  # when they were last looked for

    def get(self, answer: Columns) -> tuple[str, ...] | None:
        """Return the labels of the version that answered; None if they have yet to be learned."""
        key = (answer.model, answer.version)
        known = self._known.get(key)
        if known is None and key in self._unlisted and time.monotonic() < self._unlisted[key] + RELIST_S:
            return ()
        return known

    def learn(self, answer: Columns, models: Sequence[Model]) -> tuple[str, ...]:
        """Return the labels of the version that answered, none if the list does not name them, and remember all.

        While servers are exchanged, the list may be of one that does not know the version yet: then that is not final.
        It is where there is no list, or a version that serves has no labels in it.
        """
        key = (answer.model, answer.version)
        for model in models:
            if model.labels or model.is_serving:
                self._known[model.name, model.version] = model.labels
        if not models:
            self._known[key] = ()
        if key not in self._known:
            self._unlisted[key] = time.monotonic()
        return self._known.get(key, ())


def _label(classes: tuple[str, ...], digit: int) -> str:
    return classes[digit] if digit < len(classes) else str(digit)


def each(columns: Columns, classes: tuple[str, ...]) -> Iterator[Prediction]:
    """Yield the results for the images of an answer, one by one."""
    times = columns.timing
    timing = Timing(times.queue_seconds, times.inference_seconds, times.batch_size)
    model, version = columns.model, columns.version
    for digit, confidence, probabilities, quality in zip(
        columns.digits.tolist(),
        columns.confidences.tolist(),
        columns.probabilities,
        columns.quality.tolist(),
        strict=True,
    ):
        yield Prediction(digit, confidence, probabilities, Quality(quality), model, version, timing, classes)


def joined(answers: Sequence[Columns], classes: tuple[str, ...]) -> Predictions:
    """Return the columns of one or more answers, in order."""
    return Predictions(
        digits=np.concatenate([answer.digits for answer in answers]),
        confidences=np.concatenate([answer.confidences for answer in answers]),
        probabilities=np.concatenate([answer.probabilities for answer in answers]),
        quality=np.concatenate([answer.quality for answer in answers]),
        model=answers[-1].model,
        version=answers[-1].version,
        classes=classes,
    )


def models(answer: bytes) -> list[Model]:
    """Return the models of a list."""
    return [
        Model(
            name=model.name,
            version=model.version,
            is_default=model.is_default,
            is_serving=model.state == pb.MODEL_STATE_SERVING,
            state=pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
            reason=model.reason,
            test_accuracy=model.test_accuracy,
            batching_gain=model.batching_gain,
            batch_costs={cost.batch_size: cost.seconds for cost in model.batch_costs},
            labels=tuple(model.labels),
            dataset=model.dataset,
        )
        for model in pb.ListModelsResponse.FromString(answer).models
    ]


def is_serving(answer: bytes) -> bool:
    """Return what an answer of the health service says."""
    return bool(health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING)
