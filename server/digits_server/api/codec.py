"""Requests and answers between bytes and arrays, read and written by protobuf in whole columns.

The twin messages of columns.proto declare packed columns `bytes`: on the wire the two are the same. What the twin can't
hold, columns that are not packed or come in several pieces and numbers above 127, is left to the public messages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from digits.v1 import classifier_pb2 as pb
from digits.v1 import columns_pb2 as columns
from digits_server.errors import InvalidArgument
from digits_server.inference.engine import Predictions
from digits_server.inference.request import Outcome

ClassifyRequest = columns.ClassifyRequest | pb.ClassifyRequest
BYTE_NUMBERS = 128
"""Numbers below it are a byte each in a packed column."""


def request(data: bytes) -> ClassifyRequest:
    """Return the `ClassifyRequest` in its bytes.

    Raises:
        DecodeError: They are no such message.
    """
    found = columns.ClassifyRequest.FromString(data)
    return found if _is_whole(found, found, data) else pb.ClassifyRequest.FromString(data)


def stream_request(data: bytes) -> ClassifyRequest:
    """Return the `ClassifyRequest` in the bytes of a `ClassifyStreamRequest`.

    Raises:
        DecodeError: They are no such message.
    """
    found = columns.ClassifyStreamRequest.FromString(data)
    return found.request if _is_whole(found.request, found, data) else pb.ClassifyStreamRequest.FromString(data).request


def _is_whole(request: columns.ClassifyRequest, message: Message, data: bytes) -> bool:
    """Return whether the twin has all images: of floats in pieces it keeps the last, of those not packed none."""
    return message.ByteSize() == len(data) if request.vectors else bool(request.pixels)


def vectors(request: ClassifyRequest) -> npt.NDArray[np.float32]:
    """Return the (n,) numbers of a request's `vectors`.

    Raises:
        InvalidArgument: They are cut short.
    """
    packed = request.vectors
    if not isinstance(packed, bytes):
        return np.fromiter(packed, np.float32, len(packed))
    if len(packed) % 4:
        raise InvalidArgument("vectors", f"{len(packed)} bytes; allowed is a multiple of 4, one float32 each")
    return np.frombuffer(packed, "<f4")


def response(outcome: Outcome[Predictions], *, probabilities: bool) -> columns.ClassifyResponse:
    """Return the answer's columns and times.

    Args:
        outcome: What became of the request.
        probabilities: Whether to include the n x classes probabilities.
    """
    answers, rows = outcome.answers, slice(outcome.start, outcome.end)
    found = columns.ClassifyResponse(
        digits=numbers(answers.digits[rows], classes=answers.probabilities.shape[1]),
        confidences=answers.confidences[rows].tobytes(),
        quality_flags=answers.flags[rows].tobytes(),
        timing=columns.Timing(
            queue_seconds=outcome.queue_s, inference_seconds=outcome.inference_s, batch_size=outcome.batch_size
        ),
    )
    if probabilities:
        found.probabilities = answers.probabilities[rows].tobytes()
    return found


def numbers(values: npt.NDArray[np.integer], classes: int) -> bytes:
    """Return whole numbers from 0 to below `classes` as a packed column."""
    if classes <= BYTE_NUMBERS:
        return values.astype(np.uint8).tobytes()
    packed = pb.ClassifyResponse(digits=values.ravel().tolist()).SerializeToString()
    return columns.ClassifyResponse.FromString(packed).digits
