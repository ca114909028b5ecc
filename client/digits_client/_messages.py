"""What every client does without a network: requests from images, results from answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from digits.v1 import classifier_pb2 as pb
from digits_client._images import Rows


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
    """0 to 9."""
    confidence: float
    """Calibrated probability of `digit`."""
    probabilities: npt.NDArray[np.float32]
    """(10,) one for each digit."""
    quality: Quality
    """What is odd about the image; falsy if nothing is."""
    model: str
    version: str
    timing: Timing


@dataclass(frozen=True)
class Predictions:
    """What n images show, as columns."""

    digits: npt.NDArray[np.uint8]
    """(n,) 0 to 9."""
    confidences: npt.NDArray[np.float32]
    """(n,) calibrated probabilities of `digits`."""
    probabilities: npt.NDArray[np.float32]
    """(n, 10) one for each digit."""
    quality: npt.NDArray[np.uint8]
    """(n,) `Quality` bits."""
    model: str
    version: str

    def __len__(self) -> int:
        return len(self.digits)


@dataclass(frozen=True)
class Model:
    """One version of a model that a server knows."""

    name: str
    version: str
    is_default: bool
    is_serving: bool
    reason: str
    """Why it is not serving; empty if it is."""
    test_accuracy: float
    """Share of the MNIST test images it recognises."""
    batching_gain: float
    """Images per second in batches over images per second alone, on that server."""


def request(rows: Rows, model: str, version: str) -> pb.ClassifyRequest:
    """Return the request for (n, 784) images."""
    if rows.dtype == np.uint8:
        return pb.ClassifyRequest(pixels=rows.tobytes(), model=model, version=version)
    return pb.ClassifyRequest(vectors=rows.ravel().tolist(), model=model, version=version)


def prediction(response: pb.ClassifyResponse) -> Prediction:
    """Return the result for the only image of a request."""
    return Prediction(
        digit=response.digits[0],
        confidence=response.confidences[0],
        probabilities=np.array(response.probabilities, np.float32),
        quality=Quality(response.quality_flags[0]),
        model=response.model,
        version=response.version,
        timing=Timing(response.timing.queue_seconds, response.timing.inference_seconds, response.timing.batch_size),
    )


def predictions(responses: list[pb.ClassifyResponse]) -> Predictions:
    """Return the columns of one or more answers, in order."""
    digits = np.concatenate([np.array(response.digits, np.uint8) for response in responses])
    return Predictions(
        digits=digits,
        confidences=np.concatenate([np.array(response.confidences, np.float32) for response in responses]),
        probabilities=np.concatenate([np.array(response.probabilities, np.float32) for response in responses]).reshape(
            len(digits), -1
        ),
        quality=np.concatenate([np.array(response.quality_flags, np.uint8) for response in responses]),
        model=responses[-1].model,
        version=responses[-1].version,
    )


def models(response: pb.ListModelsResponse) -> list[Model]:
    """Return the models of a list."""
    return [
        Model(
            name=model.name,
            version=model.version,
            is_default=model.is_default,
            is_serving=model.state == pb.MODEL_STATE_SERVING,
            reason=model.reason,
            test_accuracy=model.test_accuracy,
            batching_gain=model.batching_gain,
        )
        for model in response.models
    ]
