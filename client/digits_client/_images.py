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
    if isinstance(image, str | Path | bytes | Image.Image):
        from digits_client._pictures.prepare import prepare as prepare_picture

        return prepare_picture(image)
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
