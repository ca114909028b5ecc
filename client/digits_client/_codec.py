"""Requests and answers as bytes, written and read column by column.

The messages of `columns.proto` are those of the contract, on the wire the same bytes; here their columns are bytes,
which is what arrays hold. An answer in another valid arrangement is read by the contract's own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from digits.v1 import classifier_pb2 as pb
from digits.v1 import columns_pb2 as columns_pb
from digits_client._errors import CallError, ServerFault, from_status

_FLOAT32 = np.dtype("<f4")


class Options(NamedTuple):
    """What is the same in all requests of a client."""

    model: str
    version: str


class Columns(NamedTuple):
    """What an answer says about n images."""

    digits: npt.NDArray[np.unsignedinteger]  # (n,)
    confidences: npt.NDArray[np.float32]  # (n,)
    probabilities: npt.NDArray[np.float32]  # (n, classes)
    quality: npt.NDArray[np.unsignedinteger]  # (n,)
    model: str
    version: str
    timing: pb.Timing | columns_pb.Timing


def request(options: Options, images: bytes, *, is_float: bool) -> bytes:
    """Return the bytes of a `ClassifyRequest`.

    Args:
        options: Those of the client.
        images: n x 784 uint8, or n x 784 little-endian float32.
        is_float: Which of the two.
    """
    return _request(options, images, is_float=is_float).SerializeToString()


def stream_request(options: Options, images: bytes, *, is_float: bool) -> bytes:
    """Return the bytes of a `ClassifyStreamRequest`: see `request`."""
    return columns_pb.ClassifyStreamRequest(request=_request(options, images, is_float=is_float)).SerializeToString()


def columns(answer: bytes, count: int) -> Columns:
    """Return what a `ClassifyResponse` says about `count` images.

    Raises:
        ServerFault: It can't be decoded, or is about another number of images.
    """
    try:
        message = columns_pb.ClassifyResponse.FromString(answer)
        if message.ByteSize() == len(answer) and (found := _usual(message, count)):
            return found
        return _any(pb.ClassifyResponse.FromString(answer), count)
    except DecodeError as error:
        raise _undecodable(error) from error


def stream_answer(answer: bytes) -> Columns | CallError:
    """Return what a `ClassifyStreamResponse` says about one image: columns of length 1, or why there are none.

    Raises:
        ServerFault: It can't be decoded.
    """
    try:
        message = columns_pb.ClassifyStreamResponse.FromString(answer)
        if message.WhichOneof("result") == "error":
            return from_status(message.error.code, message.error.message)
        if message.ByteSize() == len(answer) and (found := _usual(message.response, 1)):
            return found
        return _any(pb.ClassifyStreamResponse.FromString(answer).response, 1)
    except DecodeError as error:
        raise _undecodable(error) from error


def _request(options: Options, images: bytes, *, is_float: bool) -> columns_pb.ClassifyRequest:
    if is_float:
        return columns_pb.ClassifyRequest(model=options.model, version=options.version, vectors=images)
    return columns_pb.ClassifyRequest(model=options.model, version=options.version, pixels=images)


def _usual(message: columns_pb.ClassifyResponse, count: int) -> Columns | None:
    """Return the columns of an answer as Digits servers write it, one byte a number; None for any other."""
    digits, quality = message.digits, message.quality_flags
    if not len(digits) == len(quality) == count or max(digits) > 0x7F or max(quality) > 0x7F:
        return None
    if len(message.confidences) != 4 * count or len(message.probabilities) % (4 * count):
        return None
    return Columns(
        np.frombuffer(digits, np.uint8),
        np.frombuffer(message.confidences, _FLOAT32),
        np.frombuffer(message.probabilities, _FLOAT32).reshape(count, -1),
        np.frombuffer(quality, np.uint8),
        message.model,
        message.version,
        message.timing,
    )


def _any(message: pb.ClassifyResponse, count: int) -> Columns:
    """Return the columns of an answer in any valid form.

    Raises:
        ServerFault: They are not of that length.
    """
    lengths = {len(column) for column in (message.digits, message.confidences, message.quality_flags)}
    if lengths != {count} or len(message.probabilities) % count:
        about = f"columns of length {sorted(lengths)} and {len(message.probabilities)} probabilities"
        raise ServerFault(grpc.StatusCode.INTERNAL, f"{about} answer {count} images")
    return Columns(
        _numbers(message.digits),
        np.array(message.confidences, np.float32),
        np.array(message.probabilities, np.float32).reshape(count, -1),
        _numbers(message.quality_flags),
        message.model,
        message.version,
        message.timing,
    )


def _numbers(column: Sequence[int]) -> npt.NDArray[np.unsignedinteger]:
    return np.array(column, np.uint8 if max(column) <= 0xFF else np.uint32)


def _undecodable(error: DecodeError) -> ServerFault:
    return ServerFault(grpc.StatusCode.INTERNAL, f"the answer can't be decoded: {error}")
