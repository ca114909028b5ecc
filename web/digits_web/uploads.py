"""Request bodies: how they are read, and what image they hold. Nothing here asks the server."""

from __future__ import annotations

import asyncio
import io
import json
import reprlib

import numpy as np
from PIL import Image, ImageOps
from starlette.requests import Request

from digits_client import SIDE, InvalidImage, Rows, prepare
from digits_web.problems import Problem

PIXELS = SIDE * SIDE
MAX_PICTURE_PIXELS = 25_000_000
"""Larger than a telephone's usual 12 to 24 megapixels; decoded, three bytes each."""
ENOUGH = 1024
"""Side that large pictures are scaled down to before anything is computed on them: the model sees 28."""
PICTURES = {"image/png", "image/jpeg"}

_one_at_a_time = asyncio.Semaphore(1)  # for large pictures, so that memory is bounded: 25 megapixels are 100 MB


def content_type(request: Request) -> str:
    """Return what a request says its body is, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


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
    """Return the one image of a request, (1, 784), prepared as MNIST's were if it is a picture.

    Raises:
        Problem: 413 or 415.
        InvalidImage: It can't be read.
    """
    kind = content_type(request)
    if kind == "application/json":
        return from_json(await body(request, limit))
    if kind == "application/octet-stream":
        raw = await body(request, limit)
        if len(raw) != PIXELS:
            raise InvalidImage(f"body: {len(raw)} bytes; allowed are {PIXELS}, one for each pixel of {SIDE} x {SIDE}")
        return np.frombuffer(raw, np.uint8).reshape(1, PIXELS)
    shown, _ = await picture(request, limit, "application/json, application/octet-stream, ")
    return await asyncio.to_thread(prepare, shown)


async def picture(request: Request, limit: int, others: str = "") -> tuple[Image.Image, float]:
    """Return the PNG or JPEG of a request, upright, and how many of its pixels one of the result's stands for.

    Args:
        request: Has it as its body.
        limit: Largest body, in bytes.
        others: Further content types that the endpoint takes, to name in the error.

    Raises:
        Problem: 413 or 415.
        InvalidImage: It can't be decoded.
    """
    kind = content_type(request)
    if kind not in PICTURES:
        raise Problem(415, f"content-type: {kind[:100] or 'none'}; allowed are {others}image/png and image/jpeg")
    raw = await body(request, limit)
    try:
        shown = Image.open(io.BytesIO(raw), formats=["PNG", "JPEG"])  # reads the size, decodes nothing yet
    except Image.DecompressionBombError as error:  # beyond what Pillow opens at all
        raise Problem(413, f"body: {error}; allowed are {MAX_PICTURE_PIXELS:,} pixels") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise InvalidImage(f"body: {len(raw)} bytes that are no PNG or JPEG") from error
    if shown.width * shown.height > MAX_PICTURE_PIXELS:
        size = f"{shown.width} x {shown.height}"
        raise Problem(413, f"body: a picture of {size}; allowed are {MAX_PICTURE_PIXELS:,} pixels")
    side = max(shown.size)
    if side <= ENOUGH:
        await asyncio.to_thread(_decode, shown)
    else:
        async with _one_at_a_time:
            await asyncio.to_thread(_decode, shown)
    return shown, side / max(shown.size)


def _decode(shown: Image.Image) -> None:
    try:
        if max(shown.size) > ENOUGH:
            shown.thumbnail((ENOUGH, ENOUGH))  # a JPEG is decoded at a fraction of its size
        ImageOps.exif_transpose(shown, in_place=True)
    except Exception as error:
        raise InvalidImage(f"body: the picture can't be decoded: {error}") from error


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
        told = reprlib.repr(fields)
        raise InvalidImage(f'body: {told}; allowed is an object with either "pixels" or "vector"')
    (name, values) = fields.popitem()
    try:
        numbers = np.array(values)
    except (ValueError, OverflowError):  # rows of different lengths, numbers without end
        numbers = np.empty(0)
    if numbers.dtype.kind not in "if" or numbers.shape not in {(PIXELS,), (SIDE, SIDE)}:
        raise InvalidImage(f"{name}: {reprlib.repr(values)}; allowed are {PIXELS} numbers, or {SIDE} rows of {SIDE}")
    if name == "vector":
        try:
            return prepare(numbers.astype(np.float32))
        except InvalidImage as error:
            raise InvalidImage(f"vector: {str(error).removeprefix('array: ')}") from error
    is_wrong = (numbers < 0) | (numbers > 255) | (numbers % 1 != 0)
    if is_wrong.any():
        raise InvalidImage(f"pixels: {numbers[is_wrong][0]}; allowed are whole numbers, 0 background to 255 ink")
    return prepare(numbers.astype(np.uint8))
