"""Answers written from columns to bytes, without message objects in between.

In the protobuf encoding (https://protobuf.dev/programming-guides/encoding) a packed repeated field is a tag, a length,
and the values. The values of floats are their little-endian bytes, those of numbers below 128 one byte each: just what
the arrays hold. And bytes of messages put in a row are their merged message, so rare fields may come from elsewhere.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from google.protobuf.message import Message

from digits.v1 import classifier_pb2 as pb
from digits_server.engine import Predictions
from digits_server.jobs import Outcome

_LENGTH_DELIMITED = 2  # a wire type


def _tag(field: str, message: type[Message] = pb.ClassifyResponse) -> bytes:
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED])


_DIGITS, _CONFIDENCES, _PROBABILITIES, _FLAGS = map(_tag, ("digits", "confidences", "probabilities", "quality_flags"))
_RESPONSE = _tag("response", pb.ClassifyStreamResponse)
_TIMING = _tag("timing")
_TIMES = struct.Struct("<BfBfB")  # Timing: two floats, and the tag of the batch size
_QUEUE_TAG, _INFERENCE_TAG, _SIZE_TAG = 1 << 3 | 5, 2 << 3 | 5, 3 << 3


@lru_cache(maxsize=8192)
def varint(number: int) -> bytes:
    """Return the base-128 encoding of a number >= 0."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def response(fixed: bytes, outcome: Outcome[Predictions], *, probabilities: bool) -> bytes:
    """Return the bytes of a `ClassifyResponse`.

    Args:
        fixed: Bytes of the fields that don't depend on the outcome.
        outcome: What became of the request.
        probabilities: Whether to include the n x classes probabilities.
    """
    start, end, answers = outcome.start, outcome.end, outcome.answers
    confidences = answers.confidences_bytes[4 * start : 4 * end]
    count = varint(end - start)
    times = _TIMES.pack(_QUEUE_TAG, outcome.queue_s, _INFERENCE_TAG, outcome.inference_s, _SIZE_TAG)
    times += varint(outcome.batch_size)
    parts = [
        *(_DIGITS, count, answers.digits_bytes[start:end], _FLAGS, count, answers.flags_bytes[start:end]),
        *(_CONFIDENCES, varint(len(confidences)), confidences, _TIMING, varint(len(times)), times, fixed),
    ]
    if probabilities:
        width = answers.bytes_per_image
        parts += (
            _PROBABILITIES,
            varint(width * (end - start)),
            answers.probabilities_bytes[width * start : width * end],
        )
    return b"".join(parts)


def stream_response(response: bytes) -> bytes:
    """Return the bytes of a `ClassifyStreamResponse` that carries a response."""
    return b"".join((_RESPONSE, varint(len(response)), response))
