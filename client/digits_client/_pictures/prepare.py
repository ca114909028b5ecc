"""A picture of one digit, to the image that a model reads; what shows none, or several, is refused in words."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from digits_client._arrays import PIXELS
from digits_client._errors import InvalidImage
from digits_client._pictures.clean import Ink, Mask, Part, ink_of, parts_of, refined
from digits_client._pictures.decode import Picture, decode
from digits_client._pictures.normalise import normalised

ENOUGH = 640  # pixels of a picture's longer side: a digit of 1/30 of it is as large as MNIST's
SMALLEST = 7  # pixels of the longer side of a digit that can be told
WIDEST = 1.8  # times as wide as high a digit can be


def prepare(picture: Picture) -> npt.NDArray[np.uint8]:
    """Return the digit that a picture shows, (1, 784) uint8; empty paper gives zeros.

    Raises:
        InvalidImage: It can't be read as a picture, or shows several digits, or one of very few pixels.
    """
    ink = ink_of(decode(picture, ENOUGH))
    found = parts_of(ink)
    if not found.parts:
        return np.zeros((1, PIXELS), np.uint8)
    found = refined(ink, found, _digit(found.parts)[0])
    digit = _digit(found.parts)
    return normalised(cut_out(ink, found.labels, digit)).reshape(1, -1)


def _digit(found: list[Part]) -> list[Part]:
    """Return the parts of the digit, the heaviest first: whole ones rather than those that the border cuts.

    Raises:
        InvalidImage: There is more than one digit, or it is too small to tell.
    """
    whole = [part for part in found if not part.is_cut]
    if whole and whole[0].mass >= 0.03 * found[0].mass:
        found = whole
    main = found[0]
    others = [part for part in found[1:] if part.mass >= main.mass / 12]
    several = [part for part in others if is_beside(part, main)]
    if several:
        raise InvalidImage(f"image: shows {len(several) + 1} digits, not one; `read` reads numbers")
    if max(main.width, main.height) < SMALLEST:
        raise InvalidImage(
            f"image: what it shows is {main.width} x {main.height} pixels; a digit needs {SMALLEST} at least"
        )
    if main.width > WIDEST * main.height:
        raise InvalidImage("image: what it shows is wider than a digit; `read` reads numbers")
    return [main, *(part for part in others if is_near(part, main))]


def is_beside(one: Part, other: Part) -> bool:
    """Whether two parts stand beside each other, as digits do, both of a digit's height."""
    shared = min(one.right, other.right) - max(one.x, other.x)
    return (
        shared <= 0.2 * min(one.width, other.width)
        and min(one.height, other.height) >= 0.55 * max(one.height, other.height)
        and min(one.mass, other.mass) >= 0.2 * max(one.mass, other.mass)
    )


def is_near(one: Part, other: Part) -> bool:
    """Whether two parts are no further apart than those of a digit."""
    room = 0.3 * max(other.width, other.height)
    return (
        one.x - other.right < room
        and other.x - one.right < room
        and one.y - other.bottom < room
        and other.y - one.bottom < room
    )


def cut_out(ink: Ink, labels: npt.NDArray[np.integer], parts: list[Part]) -> Ink:
    """Return the ink of `parts` alone, in their common box."""
    top, bottom = max(0, min(part.y for part in parts) - 2), max(part.bottom for part in parts) + 2
    left, right = max(0, min(part.x for part in parts) - 2), max(part.right for part in parts) + 2
    inside = slice(top, bottom), slice(left, right)
    mine: Mask = np.isin(labels[inside], [part.label for part in parts]).astype(np.uint8)
    soft = max(3, round(0.06 * max(mine.shape)) | 1)
    around = cv2.dilate(mine, np.ones((soft, soft), np.uint8))  # their soft edges too
    return np.asarray(ink[inside] * around, np.uint8)
