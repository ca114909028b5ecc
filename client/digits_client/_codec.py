"""Requests and answers as bytes, written and read column by column.

The messages of `columns.proto` are those of the contract, on the wire the same bytes; here their columns are bytes,
which is what arrays hold. An answer in another valid arrangement is read by the contract's own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from digits.v1 import classifier_pb2 as pb
from digits.v1 import columns_pb2 as columns_pb
from digits_client._errors import CallError, ServerFault, from_status

_FLOAT32 = np.dtype("<f4")
_PIXELS = columns_pb.ClassifyRequest(pixels=b"1").SerializeToString()[:1]  # the field's tag
_VECTORS = columns_pb.ClassifyRequest(vectors=b"1").SerializeToString()[:1]

MessageT = TypeVar("MessageT", bound=Message)


class Columns(NamedTuple):
    """What an answer says about n images."""

    digits: npt.NDArray[np.unsignedinteger]  # (n,)
    confidences: npt.NDArray[np.float32]  # (n,)
    probabilities: npt.NDArray[np.float32]  # (n, classes)
    quality: npt.NDArray[np.unsignedinteger]  # (n,)
    model: str
    version: str
    timing: pb.Timing | columns_pb.Timing


def options(model: str, version: str) -> bytes:
    """Return the bytes of those fields of a `ClassifyRequest` that are the same in all requests of a client."""
    return columns_pb.ClassifyRequest(model=model, version=version).SerializeToString()


def request(options: bytes, images: bytes | memoryview, *, is_float: bool) -> bytes:
    """Return the bytes of a `ClassifyRequest`. The images, megabytes at times, are copied only once.

    Args:
        options: What `options` returned; bytes of messages put in a row are their merged message.
        images: n x 784 uint8, or n x 784 little-endian float32.
        is_float: Which of the two.
    """
    length = memoryview(images).nbytes
    size = bytearray()  # the length in base 128, https://protobuf.dev/programming-guides/encoding
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return b"".join((options, _VECTORS if is_float else _PIXELS, size, images))


def stream_request(request: bytes) -> bytes:
    """Return the bytes of a `ClassifyStreamRequest` that carries a `ClassifyRequest`."""
    return columns_pb.ClassifyStreamRequest(request=columns_pb.ClassifyRequest.FromString(request)).SerializeToString()


def columns(answer: bytes, count: int) -> Columns:
    """Return what a `ClassifyResponse` says about `count` images.

    Raises:
        ServerFault: It can't be decoded, or is about another number of images.
    """
    usual = _decoded(columns_pb.ClassifyResponse, answer)
    is_usual = usual.ByteSize() == len(answer) and _is_usual(usual, count)
    return _columns(usual if is_usual else _decoded(pb.ClassifyResponse, answer), count)


def stream_answer(answer: bytes) -> Columns | CallError:
    """Return what a `ClassifyStreamResponse` says about one image: columns of length 1, or why there are none.

    Raises:
        ServerFault: It can't be decoded.
    """
    usual = _decoded(columns_pb.ClassifyStreamResponse, answer)
    if usual.WhichOneof("result") == "error":
        return from_status(usual.error.code, usual.error.message)
    is_usual = usual.ByteSize() == len(answer) and _is_usual(usual.response, 1)
    return _columns(usual.response if is_usual else _decoded(pb.ClassifyStreamResponse, answer).response, 1)


def _columns(message: columns_pb.ClassifyResponse | pb.ClassifyResponse, count: int) -> Columns:
    digits, quality = _numbers(message.digits), _numbers(message.quality_flags)
    confidences, probabilities = _floats(message.confidences), _floats(message.probabilities)
    if not len(digits) == len(confidences) == len(quality) == count or len(probabilities) % count:
        raise ServerFault(
            grpc.StatusCode.INTERNAL,
            f"{len(digits)} digits, {len(confidences)} confidences, {len(quality)} quality flags and "
            f"{len(probabilities)} probabilities answer {count} images",
        )
    probabilities = probabilities.reshape(count, -1)
    return Columns(digits, confidences, probabilities, quality, message.model, message.version, message.timing)


def _decoded(kind: type[MessageT], data: bytes) -> MessageT:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ServerFault(grpc.StatusCode.INTERNAL, f"the answer can't be decoded: {error}") from error


def _is_usual(message: columns_pb.ClassifyResponse, count: int) -> bool:
    """Return whether the columns are such as Digits servers write, a byte a number; others are read one by one."""
    digits, quality, confidences = message.digits, message.quality_flags, message.confidences
    is_complete = len(digits) == len(quality) == count and len(confidences) == 4 * count
    return is_complete and not len(message.probabilities) % 4 and max(digits) < 0x80 and max(quality) < 0x80


def _numbers(column: bytes | Sequence[int]) -> npt.NDArray[np.unsignedinteger]:
    if isinstance(column, bytes):
        return np.frombuffer(column, np.uint8)
    return np.array(column, np.uint8 if max(column, default=0) <= 0xFF else np.uint32)


def _floats(column: bytes | Sequence[float]) -> npt.NDArray[np.float32]:
    return np.frombuffer(column, _FLOAT32) if isinstance(column, bytes) else np.array(column, np.float32)
