"""Requests read from their bytes, and answers written from columns to bytes, without message objects in between.

In the protobuf encoding (https://protobuf.dev/programming-guides/encoding) a packed repeated field is a tag, a length,
and the values. The values of floats are their little-endian bytes, those of numbers below 128 one byte each: just what
the arrays hold. And bytes of messages put in a row are their merged message, so rare fields may come from elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from digits.v1 import classifier_pb2 as pb
from digits_server.engine import Predictions
from digits_server.jobs import Outcome

_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types


@dataclass(slots=True)
class Request:
    """A `ClassifyRequest` read without protobuf: the same names, and images that are not copies."""

    model: str = ""
    version: str = ""
    pixels: bytes | memoryview = b""
    vectors: npt.NDArray[np.float32] | tuple[()] = ()
    top_k: int = 0
    omit_probabilities: bool = False
    request_id: str = ""


def _tag(field: str, message: type[Message] = pb.ClassifyResponse, wire_type: int = _LENGTH_DELIMITED) -> bytes:
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type])


def _text(value: memoryview) -> str:
    return str(value, "utf-8")


def _floats(value: memoryview) -> npt.NDArray[np.float32]:
    return np.frombuffer(value, "<f4")


def _request(value: memoryview) -> Request:
    return Request(**_fields(value, _REQUEST))


_Readers = dict[int, tuple[str, Callable[[Any], Any]]]  # by tag
_REQUEST: _Readers = {
    _tag(name, pb.ClassifyRequest, wire_type)[0]: (name, read)
    for name, wire_type, read in (
        ("model", _LENGTH_DELIMITED, _text),
        ("version", _LENGTH_DELIMITED, _text),
        ("pixels", _LENGTH_DELIMITED, lambda value: value),
        ("vectors", _LENGTH_DELIMITED, _floats),
        ("top_k", _VARINT, int),
        ("omit_probabilities", _VARINT, bool),
        ("request_id", _LENGTH_DELIMITED, _text),
    )
}
_STREAM_REQUEST: _Readers = {_tag("request", pb.ClassifyStreamRequest)[0]: ("request", _request)}
_UNUSUAL = (KeyError, IndexError, ValueError)  # unknown field; an end too soon; the rest
_DIGITS, _CONFIDENCES, _PROBABILITIES, _FLAGS = map(_tag, ("digits", "confidences", "probabilities", "quality_flags"))
_RESPONSE = _tag("response", pb.ClassifyStreamResponse)
_TIMING = _tag("timing")
_TIMES = struct.Struct("<BfBfB")  # Timing: two floats, and the tag of the batch size
_QUEUE_TAG, _INFERENCE_TAG, _SIZE_TAG = 1 << 3 | 5, 2 << 3 | 5, 3 << 3


def request(data: bytes) -> Request | pb.ClassifyRequest:
    """Return the `ClassifyRequest` in its bytes. What is not in the usual form is left to protobuf.

    Raises:
        DecodeError: They are no such message.
    """
    try:
        return _request(memoryview(data))
    except _UNUSUAL:
        return pb.ClassifyRequest.FromString(data)


def stream_request(data: bytes) -> Request | pb.ClassifyRequest:
    """Return the `ClassifyRequest` in the bytes of a `ClassifyStreamRequest`, as `request` does.

    Raises:
        DecodeError: They are no such message.
    """
    try:
        found: Request = _fields(memoryview(data), _STREAM_REQUEST)["request"]
    except _UNUSUAL:
        return pb.ClassifyStreamRequest.FromString(data).request
    return found


def _fields(data: memoryview, readers: _Readers) -> dict[str, Any]:
    """Return a message's fields, if all are known and there is one of each at most.

    Raises:
        KeyError, IndexError, ValueError: It is not so.
    """
    fields: dict[str, Any] = {}
    at, end = 0, len(data)
    while at < end:
        tag = data[at]
        name, read = readers[tag]
        value, at = _number(data, at + 1)
        if tag & 7 == _LENGTH_DELIMITED:
            start, at = at, at + value
            value = data[start:at]
        if at > end or name in fields:
            raise ValueError(name)
        fields[name] = read(value)
    return fields


def _number(data: memoryview, at: int) -> tuple[Any, int]:
    """Return the number that starts at `at`, and where it ends.

    Raises:
        IndexError: The bytes end before it does.
        ValueError: It has more than 28 bits.
    """
    number = 0
    for shift in (0, 7, 14, 21):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("too long")


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
