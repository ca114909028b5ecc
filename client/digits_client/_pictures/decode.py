"""A picture in any of Pillow's formats and modes, to grey levels."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from digits_client._errors import InvalidImage

Picture = str | Path | bytes | bytearray | memoryview | Image.Image
Grey = npt.NDArray[np.uint8]


def decode(picture: Picture, most: int) -> Grey:
    """Return the picture upright as (height, width) uint8 grey levels, neither side above `most` pixels.

    Raises:
        InvalidImage: There is no such file, or it is damaged or no picture.
    """
    if isinstance(picture, bytearray | memoryview):
        picture = bytes(picture)
    try:
        if isinstance(picture, Image.Image):
            return _grey(picture, most)
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            image.draft("L", (most, most))  # a large JPEG is decoded at a fraction of its size
            return _grey(image, most)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise InvalidImage(f"{_name(picture)}: can't be read as a picture: {_reason(error)}") from error


def _name(picture: str | Path | bytes | Image.Image) -> str:
    if isinstance(picture, Image.Image):
        return "PIL image"
    return f"{len(picture)} bytes" if isinstance(picture, bytes) else str(picture)


def _reason(error: Exception) -> str:
    """Return why a picture can't be read, without the name of the file or of the object that was read."""
    if isinstance(error, UnidentifiedImageError):
        return "it is in none of the known formats"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _grey(image: Image.Image, most: int) -> Grey:
    image = ImageOps.exif_transpose(image)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        grey = _stretched(np.asarray(image, np.float32))
    elif "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        grey = _opaque(np.asarray(image.convert("RGBA").convert("LA")))
    else:
        grey = np.asarray(image.convert("L"))
    if not grey.size:
        raise ValueError("it has no pixels")
    shrink = most / max(grey.shape)
    size = [max(1, round(length * shrink)) for length in grey.shape[::-1]]
    return _uint8(cv2.resize(grey, size, interpolation=cv2.INTER_AREA)) if shrink < 1 else grey


def _uint8(array: npt.NDArray[np.generic] | cv2.typing.MatLike) -> Grey:
    return np.asarray(array, np.uint8)


def _stretched(values: npt.NDArray[np.float32]) -> Grey:
    """Return deep grey levels, whatever their range, on 0 to 255."""
    values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    return _uint8((values - low) * (255 / max(high - low, 1e-6)))


def _opaque(pixels: Grey) -> Grey:
    """Return (height, width) from (height, width, 2) grey and alpha: the ground is laid where nothing was drawn."""
    grey, alpha = pixels[..., 0].astype(np.float32), pixels[..., 1].astype(np.float32) / 255
    drawn = grey[alpha > 0.5]
    if not drawn.size or alpha.min() > 0.99:
        return _uint8(grey if drawn.size else np.full_like(grey, 255))
    is_ink = drawn.size <= alpha.size / 2  # and no picture with round corners, say
    median = float(np.median(drawn))
    ground = (255 if median < 128 else 0) if is_ink else median
    return _uint8(grey * alpha + ground * (1 - alpha))
