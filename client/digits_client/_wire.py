"""Requests and answers as bytes, written and read column by column, without a message object in between.

In the protobuf encoding (https://protobuf.dev/programming-guides/encoding) a packed repeated field is a tag, a length
and the values: those of floats are their little-endian bytes, those of numbers below 128 one byte each. That is what
arrays hold, so columns are copied, not built. Bytes of messages put in a row are their merged message. An answer in any
other valid form, which another server may choose, is left to protobuf itself.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from digits.v1 import classifier_pb2 as pb
from digits_client._errors import CallError, ServerFault, from_status

_LENGTH_DELIMITED = 2  # wire type: a length and that many bytes
_FLOAT32 = np.dtype("<f4")


class Columns(NamedTuple):
    """What an answer says about n images."""

    digits: npt.NDArray[np.uint8]  # (n,)
    confidences: npt.NDArray[np.float32]  # (n,)
    probabilities: npt.NDArray[np.float32]  # (n, classes)
    quality: npt.NDArray[np.uint8]  # (n,)
    model: str
    version: str
    timing: pb.Timing


def _number(message: type[Message], field: str) -> int:
    return message.DESCRIPTOR.fields_by_name[field].number


def _tag(message: type[Message], field: str) -> bytes:
    return bytes([_number(message, field) << 3 | _LENGTH_DELIMITED])


_PIXELS, _VECTORS = _tag(pb.ClassifyRequest, "pixels"), _tag(pb.ClassifyRequest, "vectors")
_STREAMED = _tag(pb.ClassifyStreamRequest, "request")
_RESPONSE, _ERROR = _number(pb.ClassifyStreamResponse, "response"), _number(pb.ClassifyStreamResponse, "error")
_DIGITS, _CONFIDENCES, _PROBABILITIES, _QUALITY, _MODEL, _VERSION, _TIMING = (
    _number(pb.ClassifyResponse, field)
    for field in ("digits", "confidences", "probabilities", "quality_flags", "model", "version", "timing")
)


def varint(number: int) -> bytes:
    """Return the base-128 encoding of a number >= 0."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def options(model: str, version: str) -> bytes:
    """Return the bytes of those fields of a `ClassifyRequest` that are the same in all requests of a client."""
    return pb.ClassifyRequest(model=model, version=version).SerializeToString()


def request(options: bytes, images: bytes, *, is_float: bool) -> bytes:
    """Return the bytes of a `ClassifyRequest`.

    Args:
        options: What `options` returned.
        images: n x 784 uint8, or n x 784 little-endian float32.
        is_float: Which of the two.
    """
    return b"".join((options, _VECTORS if is_float else _PIXELS, varint(len(images)), images))


def stream_request(request: bytes) -> bytes:
    """Return the bytes of a `ClassifyStreamRequest` that carries a request."""
    return b"".join((_STREAMED, varint(len(request)), request))


def columns(answer: bytes, count: int) -> Columns:
    """Return what a `ClassifyResponse` says about `count` images.

    Raises:
        ServerFault: It can't be decoded, or is about another number of images.
    """
    try:
        found = _usual(answer) or _any(answer)
    except DecodeError as error:
        raise ServerFault(grpc.StatusCode.INTERNAL, f"the answer can't be decoded: {error}") from error
    lengths = {len(column) for column in found[:4]}
    if lengths != {count}:
        raise ServerFault(grpc.StatusCode.INTERNAL, f"columns of length {sorted(lengths)} answer {count} images")
    return found


def stream_answer(answer: bytes) -> Columns | CallError:
    """Return what a `ClassifyStreamResponse` says about one image: columns of length 1, or why there are none.

    Raises:
        ServerFault: It can't be decoded.
    """
    fields = _fields(answer)
    if fields is not None and len(fields) == 1 and _RESPONSE in fields:
        return columns(fields[_RESPONSE], 1)
    try:
        message = pb.ClassifyStreamResponse.FromString(answer)
    except DecodeError as error:
        raise ServerFault(grpc.StatusCode.INTERNAL, f"the answer can't be decoded: {error}") from error
    if message.WhichOneof("result") == "error":
        return from_status(message.error.code, message.error.message)
    return columns(message.response.SerializeToString(), 1)


def _fields(message: bytes) -> dict[int, bytes] | None:
    """Return the fields of a message by number; None if one is not of bytes, or comes twice, or is cut short."""
    fields: dict[int, bytes] = {}
    at, end = 0, len(message)
    try:
        while at < end:
            tag, length = message[at], message[at + 1]
            at += 2
            if length > 0x7F:
                length &= 0x7F
                shift = 7
                while (byte := message[at]) > 0x7F:
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    at += 1
                length |= byte << shift
                at += 1
            number = tag >> 3
            if tag & 0b10000111 != _LENGTH_DELIMITED or number in fields:  # the topmost bit: numbers above 15
                return None
            fields[number] = message[at : at + length]
            at += length
    except IndexError:
        return None
    return fields if at == end else None


def _usual(answer: bytes) -> Columns | None:
    """Return the columns of an answer in the form that Digits servers write; None for any other form."""
    fields = _fields(answer)
    if fields is None:
        return None
    digits = np.frombuffer(fields.get(_DIGITS, b""), np.uint8)
    quality = np.frombuffer(fields.get(_QUALITY, b""), np.uint8)
    confidences, probabilities = fields.get(_CONFIDENCES, b""), fields.get(_PROBABILITIES, b"")
    if not len(digits) or len(confidences) != 4 * len(digits) or len(probabilities) % len(confidences):
        return None
    if max(fields[_DIGITS]) > 0x7F or max(fields.get(_QUALITY, b"\0")) > 0x7F:  # numbers of more than one byte
        return None
    return Columns(
        digits,
        np.frombuffer(confidences, _FLOAT32),
        np.frombuffer(probabilities, _FLOAT32).reshape(len(digits), -1),
        quality,
        str(fields.get(_MODEL, b""), "utf-8", "replace"),
        str(fields.get(_VERSION, b""), "utf-8", "replace"),
        pb.Timing.FromString(fields.get(_TIMING, b"")),
    )


def _any(answer: bytes) -> Columns:
    """Return the columns of an answer in any valid form."""
    message = pb.ClassifyResponse.FromString(answer)
    digits = np.array(message.digits, np.uint8)
    probabilities = np.array(message.probabilities, np.float32)
    return Columns(
        digits,
        np.array(message.confidences, np.float32),
        probabilities.reshape(len(digits), -1)
        if len(digits) and not len(probabilities) % len(digits)
        else probabilities,
        np.array(message.quality_flags, np.uint8),
        message.model,
        message.version,
        message.timing,
    )
