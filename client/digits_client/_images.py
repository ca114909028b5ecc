"""Anything that shows one digit, to the 784 numbers that the service takes.

Arrays are taken as they are. Pictures go through the preparation that MNIST's own images went through (LeCun et al.
1998, section III.A): ink bright on dark, scaled with its proportions into 20 x 20, placed in 28 x 28 with its centre of
mass in the middle.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from digits_client._errors import InvalidImage

SIDE = 28
PIXELS = SIDE * SIDE
BOX = 20  # side of the square that the ink is scaled into

Rows = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(n, 784) images: uint8 from 0 (background) to 255 (ink), or float32 in [0, 1]."""
ImageLike = str | Path | bytes | Image.Image | npt.NDArray[np.generic]
"""A file's path, the bytes of a PNG or JPEG, a PIL image, or a (28, 28) or (784,) array."""


def prepare(image: ImageLike) -> Rows:
    """Return one image as (1, 784) uint8 or float32.

    Raises:
        InvalidImage: It is none of the kinds of `ImageLike`, or can't be read.
    """
    if isinstance(image, np.ndarray):
        return _array(image, (PIXELS,), (SIDE, SIDE))
    if isinstance(image, Image.Image):
        return _picture(image)
    if isinstance(image, bytes):
        return _picture(_open(io.BytesIO(image), f"{len(image)} bytes"))
    if isinstance(image, str | Path):
        return _picture(_open(Path(image), str(image)))
    raise InvalidImage(f"image: a {type(image).__name__}; allowed are a path, bytes, a PIL image or a numpy array")


def rows(images: npt.NDArray[np.generic] | Iterable[ImageLike]) -> Rows:
    """Return many images as (n, 784): one array of them, or any number of things that `prepare` takes.

    uint8 if all are, else float32.

    Raises:
        InvalidImage: One of them can't be read, or there are none.
    """
    if isinstance(images, np.ndarray):
        many = _array(images, (-1, PIXELS), (-1, SIDE, SIDE))
    else:
        many = _joined([prepare(image) for image in images])
    if not len(many):
        raise InvalidImage("images: there are none")
    return many


def _joined(each: list[Rows]) -> Rows:
    if any(one.dtype == np.float32 for one in each):
        scale = np.float32(1 / 255)
        return np.concatenate([one if one.dtype == np.float32 else one * scale for one in each], dtype=np.float32)
    return np.concatenate([np.empty((0, PIXELS), np.uint8), *each], dtype=np.uint8)


def _array(array: npt.NDArray[np.generic], *shapes: tuple[int, ...]) -> Rows:
    """Return (n, 784) from an array whose shape is among `shapes`, where -1 stands for any length."""
    fits = any(
        len(shape) == array.ndim and all(want in (-1, have) for want, have in zip(shape, array.shape, strict=True))
        for shape in shapes
    )
    if not fits:
        raise InvalidImage(f"array: shape {array.shape}; allowed is {' or '.join(map(str, shapes))}")
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False).reshape(-1, PIXELS)
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # NaN compares false
            raise InvalidImage(f"array: values from {array.min():g} to {array.max():g}; allowed is 0 to 1")
        return array.astype(np.float32, copy=False).reshape(-1, PIXELS)
    raise InvalidImage(f"array: dtype {array.dtype}; allowed is uint8 in 0 to 255, or floats in 0 to 1")


def _open(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(source)
        image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidImage(f"{name}: can't be read as an image: {error}") from error
    return image


def _picture(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return a picture of one digit the way MNIST would have it, (1, 784) uint8."""
    ink = _ink(image)
    if image.size == (SIDE, SIDE):  # prepared already
        return np.rint(ink * 255).astype(np.uint8).reshape(1, PIXELS)
    return np.rint(_centred(_boxed(ink)) * 255).astype(np.uint8).reshape(1, PIXELS)


def _ink(image: Image.Image) -> npt.NDArray[np.float32]:
    """Return (height, width) float32 in [0, 1]: 0 where the paper is, 1 where most of the ink is."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    grey = np.asarray(ImageOps.exif_transpose(image).convert("L"), np.float32) / np.float32(255)
    paper, noise = _paper(grey)
    ink: npt.NDArray[np.float32] = grey - paper
    if -ink.min() > ink.max():  # dark on bright
        ink = -ink
    ink = np.clip(ink - 3 * noise, 0, None, dtype=np.float32)
    ink /= max(float(ink.max()), 1e-6)
    return ink


def _paper(grey: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], np.float32]:
    """Return how bright the paper is at each pixel, as unevenly lit as a plane, and how much it varies otherwise.

    The plane goes through the pixels at the border, where most is paper; those of strokes that touch it are left out.
    """
    height, width = grey.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    plane = np.stack([np.ones_like(x), x, y], axis=-1)  # (height, width, 3)
    border = np.ones(grey.shape, bool)
    border[1:-1, 1:-1] = False
    points, values = plane[border], grey[border]
    kept = np.abs(values - np.median(values)) <= max(0.2, 2 * float(np.median(np.abs(values - np.median(values)))))
    slope = np.linalg.lstsq(points[kept], values[kept], rcond=None)[0]
    noise = np.float32(1.5) * np.median(np.abs(points[kept] @ slope - values[kept]))  # as a standard deviation
    return plane @ slope, noise


def _boxed(ink: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the inked part, scaled to fit in 20 x 20 with its proportions kept."""
    marked = ink > 0.3  # noise and paper texture stay below
    if not marked.any():
        return np.zeros((BOX, BOX), np.float32)
    top, bottom = np.flatnonzero(marked.any(axis=1))[[0, -1]]
    left, right = np.flatnonzero(marked.any(axis=0))[[0, -1]]
    cut = Image.fromarray(ink[top : bottom + 1, left : right + 1])
    scale = BOX / max(cut.size)
    width, height = (max(1, round(length * scale)) for length in cut.size)
    return np.clip(np.asarray(cut.resize((width, height), Image.Resampling.LANCZOS), np.float32), 0, 1)


def _centred(ink: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (28, 28) with the centre of mass of `ink` (at most 20 x 20) in the middle."""
    mass = max(float(ink.sum()), 1e-6)
    height, width = ink.shape
    y = float(ink.sum(axis=1) @ np.arange(height)) / mass
    x = float(ink.sum(axis=0) @ np.arange(width)) / mass
    top = min(max(round((SIDE - 1) / 2 - y), 0), SIDE - height)
    left = min(max(round((SIDE - 1) / 2 - x), 0), SIDE - width)
    canvas = np.zeros((SIDE, SIDE), np.float32)
    canvas[top : top + height, left : left + width] = ink
    return canvas
