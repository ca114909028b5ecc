"""Numbers of several digits: what of a picture is classified, and what the answers make of it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from digits_client._arrays import PIXELS
from digits_client._errors import InvalidImage
from digits_client._requests import ImageLike, Picture, kind, pictures
from digits_client._results import Prediction


@dataclass(frozen=True)
class ReadDigit:
    """One digit of a number."""

    box: tuple[int, int, int, int]
    """Where it is: x, y, width and height in pixels of the picture, turned upright."""
    image: npt.NDArray[np.uint8]
    """(28, 28) uint8, ink bright on dark: what the model got for it."""
    prediction: Prediction
    is_touching: bool
    """Whether it was cut off a neighbour that it touches: look again."""


@dataclass(frozen=True)
class Number:
    """What a picture of a number says."""

    text: str
    """The labels of its digits, in reading order."""
    digits: tuple[ReadDigit, ...]


class Reading:
    """A picture that is being read: its `rows` are to be classified, which makes the number.

    Raises:
        InvalidImage: It is no picture, can't be read, or shows nothing.
    """

    def __init__(self, image: ImageLike) -> None:
        if not isinstance(image, Picture):
            allowed = "a path, bytes or a PIL image, such as PIL.Image.fromarray(array)"
            raise InvalidImage(f"image: {kind(image)}; allowed are {allowed}")
        self._segments = pictures().segment(image)
        self.rows: npt.NDArray[np.uint8] = np.stack([each.image for each in self._segments]).reshape(-1, PIXELS)
        """(n, 784) everything that may be a digit."""

    def number(self, predictions: Sequence[Prediction]) -> Number:
        """Return the number, from what the model says of each of `rows`."""
        chosen = pictures().likeliest(self._segments, [prediction.confidence for prediction in predictions])
        digits = tuple(
            ReadDigit(each.box, each.image, prediction, each.is_touching)
            for each, prediction in ((self._segments[at], predictions[at]) for at in chosen)
        )
        return Number("".join(digit.prediction.label for digit in digits), digits)
