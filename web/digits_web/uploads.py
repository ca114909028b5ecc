"""Request bodies: how they are read, and what image they hold. Nothing here asks the server."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from starlette.requests import Request

from digits_client import SIDE, InvalidImage, Rows, prepare
from digits_web.problems import Problem

PIXELS = SIDE * SIDE
MAX_PICTURE_PIXELS = 25_000_000
"""Larger than a telephone's usual 12 to 24 megapixels; decoded, three bytes each."""
ENOUGH = 1024
"""Side that large pictures are scaled down to before anything is computed on them: the model sees 28."""
KINDS = "application/json, application/octet-stream, image/png and image/jpeg"

BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are not what they say."""

_one_at_a_time = asyncio.Semaphore(1)  # for large pictures, so that memory is bounded: 25 megapixels are 100 MB


async def body(request: Request, limit: int) -> bytes:
    """Return what was sent, at most `limit` bytes.

    Raises:
        Problem: 413, as soon as it is known to be more.
    """
    too_large = Problem(413, f"body: allowed are at most {limit} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise too_large
    return bytes(read)


async def image(request: Request, limit: int) -> Rows:
    """Return the image of a request, (1, 784), prepared as MNIST's were if it is a picture.

    Raises:
        Problem: 413 or 415.
        InvalidImage: It can't be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return from_json(await body(request, limit))
    if kind == "application/octet-stream":
        return from_bytes(await body(request, limit))
    if kind in {"image/png", "image/jpeg"}:
        return await from_picture(await body(request, limit))
    raise Problem(415, f"content-type: {kind[:100] or 'none'}; allowed are {KINDS}")


def from_bytes(raw: bytes) -> Rows:
    """Return the image in 784 bytes, row by row, 0 background to 255 ink.

    Raises:
        InvalidImage: It is another number of bytes.
    """
    if len(raw) != PIXELS:
        raise InvalidImage(f"body: {len(raw)} bytes; allowed are {PIXELS}, one for each pixel of {SIDE} x {SIDE}")
    return np.frombuffer(raw, np.uint8).reshape(1, PIXELS)


def from_json(raw: bytes) -> Rows:
    """Return the image in an object with `pixels` (0 to 255) or `vector` (0.0 to 1.0), 784 numbers or 28 rows of 28.

    Raises:
        InvalidImage: It is not that.
    """
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:  # the latter for a million brackets
        raise InvalidImage(f"body: not JSON: {error}") from error
    if not isinstance(fields, dict) or len(fields) != 1 or not fields.keys() <= {"pixels", "vector"}:
        raise InvalidImage('body: allowed is an object with either "pixels" or "vector"')
    (name, values) = fields.popitem()
    numbers = _numbers(values)
    if numbers is None or numbers.shape not in {(PIXELS,), (SIDE, SIDE)}:
        raise InvalidImage(f"{name}: allowed are {PIXELS} numbers, or {SIDE} rows of {SIDE}")
    if name == "vector":
        return prepare(numbers.astype(np.float32))
    if numbers.dtype.kind != "i" or numbers.min() < 0 or numbers.max() > 255:
        raise InvalidImage("pixels: allowed are whole numbers, 0 background to 255 ink")
    return prepare(numbers.astype(np.uint8))


def _numbers(values: Any) -> npt.NDArray[np.generic] | None:
    """Return an array of integers or floats; None if the values are anything else."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # rows of different lengths
        return None
    return array if array.dtype.kind in "if" else None


async def from_picture(raw: bytes) -> Rows:
    """Return the image that a PNG or JPEG shows.

    Raises:
        InvalidImage: It is none.
        Problem: 413 if it has too many pixels.
    """
    try:
        picture = Image.open(io.BytesIO(raw), formats=["PNG", "JPEG"])  # reads the size, decodes nothing yet
    except (*BROKEN, UnidentifiedImageError) as error:
        raise InvalidImage(f"body: {len(raw)} bytes that are no PNG or JPEG") from error
    if picture.width * picture.height > MAX_PICTURE_PIXELS:
        raise Problem(
            413, f"body: a picture of {picture.width} x {picture.height}; allowed are {MAX_PICTURE_PIXELS:,} pixels"
        )
    if max(picture.size) <= ENOUGH:
        return await asyncio.to_thread(_prepared, picture)
    async with _one_at_a_time:
        return await asyncio.to_thread(_prepared, picture)


def _prepared(picture: Image.Image) -> Rows:
    try:
        if max(picture.size) > ENOUGH:
            picture.thumbnail((ENOUGH, ENOUGH))  # a JPEG is decoded at a fraction of its size
        return prepare(picture)
    except BROKEN as error:
        raise InvalidImage(f"body: the picture can't be decoded: {error}") from error
