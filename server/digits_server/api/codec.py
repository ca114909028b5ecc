"""Requests read from their bytes, and answers written from columns to bytes, without message objects in between.

In the protobuf encoding (https://protobuf.dev/programming-guides/encoding) a packed repeated field is a tag, a length,
and the values. The values of floats are their little-endian bytes, those of numbers below 128 one byte each: just what
the arrays hold. And bytes of messages put in a row are their merged message, so rare fields may come from elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from digits.v1 import classifier_pb2 as pb
from digits_server.inference.engine import Predictions
from digits_server.inference.request import Outcome

_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types


class Request:
    """A `ClassifyRequest` read without protobuf: the same names, and images that are not copies.

    Args:
        fields: Those that are not empty.
    """

    model: str = ""
    version: str = ""
    pixels: bytes | memoryview = b""
    vectors: npt.NDArray[np.float32] | tuple[()] = ()
    top_k: int = 0
    omit_probabilities: bool = False
    request_id: str = ""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__ = fields


def _tag(field: str, message: type[Message] = pb.ClassifyResponse, wire_type: int = _LENGTH_DELIMITED) -> bytes:
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type])


def _text(data: bytes, start: int, end: int) -> str:
    return data[start:end].decode()


def _view(data: bytes, start: int, end: int) -> memoryview:
    return memoryview(data)[start:end]


def _floats(data: bytes, start: int, end: int) -> npt.NDArray[np.float32]:
    return np.frombuffer(memoryview(data)[start:end], "<f4")


def _request(data: bytes, start: int, end: int) -> Request:
    return Request(_fields(data, start, end, _REQUEST))


_Readers = dict[int, tuple[str, Callable[..., Any]]]  # by tag
_REQUEST: _Readers = {
    _tag(name, pb.ClassifyRequest, wire_type)[0]: (name, read)
    for name, wire_type, read in (
        ("model", _LENGTH_DELIMITED, _text),
        ("version", _LENGTH_DELIMITED, _text),
        ("pixels", _LENGTH_DELIMITED, _view),
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
        return _request(data, 0, len(data))
    except _UNUSUAL:
        return pb.ClassifyRequest.FromString(data)


def stream_request(data: bytes) -> Request | pb.ClassifyRequest:
    """Return the `ClassifyRequest` in the bytes of a `ClassifyStreamRequest`, as `request` does.

    Raises:
        DecodeError: They are no such message.
    """
    try:
        found: Request = _fields(data, 0, len(data), _STREAM_REQUEST)["request"]
    except _UNUSUAL:
        return pb.ClassifyStreamRequest.FromString(data).request
    return found


def _fields(data: bytes, at: int, end: int, readers: _Readers) -> dict[str, Any]:
    """Return a message's fields, if all are known and there is one of each at most.

    Raises:
        KeyError, IndexError, ValueError: It is not so, or a number has more than 28 bits.
    """
    fields: dict[str, Any] = {}
    while at < end:
        tag = data[at]
        name, read = readers[tag]
        number = byte = data[at + 1]
        at += 2
        shift = 0
        while byte > 0x7F:
            if shift == 21:
                raise ValueError(name)
            byte = data[at]
            at += 1
            shift += 7
            number += (byte - 1) << shift  # 1: the bit of the byte before that says that there is another one
        if tag & 7 == _VARINT:
            value = read(number)
        else:
            start, at = at, at + number
            value = read(data, start, at)
        if at > end or name in fields:
            raise ValueError(name)
        fields[name] = value
    return fields


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
    answers, rows = outcome.answers, slice(outcome.start, outcome.end)
    digits, count = answers.digits[rows].tobytes(), varint(outcome.end - outcome.start)
    if answers.probabilities.shape[1] > 128:  # class indices of more than a byte
        digits = b"".join(map(varint, answers.digits[rows].tolist()))
    confidences = answers.confidences[rows].tobytes()
    times = _TIMES.pack(_QUEUE_TAG, outcome.queue_s, _INFERENCE_TAG, outcome.inference_s, _SIZE_TAG)
    times += varint(outcome.batch_size)
    parts = [
        *(_DIGITS, varint(len(digits)), digits, _FLAGS, count, answers.flags[rows].tobytes()),
        *(_CONFIDENCES, varint(len(confidences)), confidences, _TIMING, varint(len(times)), times, fixed),
    ]
    if probabilities:
        found = answers.probabilities[rows].tobytes()
        parts += (_PROBABILITIES, varint(len(found)), found)
    return b"".join(parts)


def stream_response(response: bytes) -> bytes:
    """Return the bytes of a `ClassifyStreamResponse` that carries a response."""
    return b"".join((_RESPONSE, varint(len(response)), response))
