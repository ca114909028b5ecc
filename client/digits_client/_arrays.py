"""Arrays as people have them, to the (n, 784) rows that the service takes. What is unclear is refused with a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from digits_client._errors import InvalidImage

SIDE = 28
PIXELS = SIDE * SIDE

Rows = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(n, 784) images: uint8 from 0 (background) to 255 (ink), or float32 in [0, 1]."""
ArrayLike = npt.NDArray[np.generic] | Sequence[float] | Sequence[Sequence[float]]
"""A numpy array, or lists of numbers; at run time also what numpy makes an array of, such as a tensor of PyTorch."""
ROUNDING = 1e-5
"""How far a float may lie outside of 0 to 1: further than arithmetic leads."""
ONE = f"({PIXELS},), ({SIDE}, {SIDE}) or ({SIDE}, {SIDE}, 1)"
MANY = f"(n, {PIXELS}), (n, {SIDE}, {SIDE}) or (n, {SIDE}, {SIDE}, 1)"


def is_array(image: object) -> TypeGuard[ArrayLike]:
    """Return whether this is an array, or numbers in lists."""
    return isinstance(image, list | tuple) or hasattr(image, "__array__")


def row(image: ArrayLike) -> Rows:
    """Return one image as (1, 784) uint8 or float32.

    Raises:
        InvalidImage: It has another shape, or values that are not clear.
    """
    array = _array(image)
    if not _is_image(array.shape):
        raise InvalidImage(f"array: shape {array.shape}; allowed is {ONE}{_remedy(array.shape)}")
    return _values(array).reshape(1, PIXELS)


def rows(images: Any) -> Rows:
    """Return many images in one array as (n, 784) uint8 or float32.

    Raises:
        InvalidImage: It has another shape, or values that are not clear.
    """
    array = _array(images)
    if not array.ndim or not _is_image(array.shape[1:]):
        remedy = "; it is one image: use classify, or [array]" if _is_image(array.shape) else _remedy(array.shape[1:])
        raise InvalidImage(f"array: shape {array.shape}; allowed is {MANY}{remedy}")
    return _values(array).reshape(-1, PIXELS)


def _array(image: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(image)
    except Exception as error:  # lists of different lengths, a tensor on a GPU: each library has its own
        raise InvalidImage(f"array: numpy can't make one of this {type(image).__name__}: {error}") from error


def _is_image(shape: tuple[int, ...]) -> bool:
    """Return whether this is the shape of one image, axes of length 1 aside."""
    return tuple(length for length in shape if length != 1) in {(PIXELS,), (SIDE, SIDE)}


def _remedy(shape: tuple[int, ...]) -> str:
    is_picture = (len(shape) == 3 and shape[-1] in {3, 4}) or (len(shape) == 2 and min(shape) > 1)
    return "; a picture of another size or in colours: pass PIL.Image.fromarray(array)" if is_picture else ""


def _values(array: npt.NDArray[Any]) -> Rows:
    """Return the values of an array as uint8 from 0 to 255 or float32 from 0 to 1."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    is_float = np.issubdtype(array.dtype, np.floating)
    if not is_float and not np.issubdtype(array.dtype, np.integer):
        raise InvalidImage(f"array: dtype {array.dtype}; allowed are integers in 0 to 255, bool, or floats in 0 to 1")
    least, most = (array.min(), array.max()) if array.size else (0, 0)
    if is_float:
        return _floats(array, float(least), float(most))
    if least < 0 or most > 255:
        raise InvalidImage(f"array: integers from {least} to {most}; allowed is 0 to 255")
    if most == 1:
        raise InvalidImage("array: integers 0 and 1 only: is 1 full ink? Then pass array.astype(bool), else uint8")
    return array.astype(np.uint8)


def _floats(array: npt.NDArray[Any], least: float, most: float) -> npt.NDArray[np.float32]:
    if not -ROUNDING <= least <= most <= 1 + ROUNDING:  # NaN compares false
        remedy = ": divide by 255" if least >= 0 and 1 < most <= 255 else ""
        raise InvalidImage(f"array: floats from {least:.9g} to {most:.9g}; allowed is 0 to 1{remedy}")
    values = array.astype(np.float32, copy=False)
    return values if least >= 0 and most <= 1 else values.clip(0, 1)
