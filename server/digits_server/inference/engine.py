"""One model: arrays of images in, columns of answers out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from digits_server.inference.cost import CostCurve, measure
from digits_server.inference.graph import Graph

PIXELS = 784
"""Numbers in one 28 x 28 image."""

BLANK_BELOW = 1.5 / PIXELS
"""Mean ink under which an image is blank: less than two pixels' worth; the faintest MNIST digit has ten times that."""
INVERTED_ABOVE = 0.5
"""Mean ink above which background and ink must have been swapped; MNIST's boldest digit has 0.42."""

BLANK, INVERTED, OUT_OF_RANGE, LOW_CONFIDENCE = 1, 2, 4, 8
"""Bits of the quality flags, as `digits.v1.QualityFlag`."""

PIXEL_TOLERANCE = 1e-4
"""How far a float times 255 may be from a whole number and still be a pixel. `x / 255` in float32 is within 5e-5; what
is further off would change the answer by more than the 1e-5 to which both graphs agree."""

COLUMNS = ("digits", "confidences", "probabilities", "flags", "ink")
"""What a byte graph returns, in this order: the columns of `Predictions`."""

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(n, 784) images: uint8 from 0 (background) to 255, or float32 in [0, 1]."""


@dataclass(slots=True)
class Predictions:
    """Answers for n images, as columns."""

    digits: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """(n,) index of the most probable class; uint16 where there are more than 256 classes."""
    confidences: npt.NDArray[np.float32]
    """(n,) its probability."""
    probabilities: npt.NDArray[np.float32]
    """(n, classes), rows add up to 1."""
    flags: npt.NDArray[np.uint8]
    """(n,) sets of quality bits."""
    ink: npt.NDArray[np.float32]
    """(n,) mean ink of the images."""

    def __len__(self) -> int:
        return len(self.digits)

    @classmethod
    def join(cls, parts: Sequence[tuple[Predictions, int, int]]) -> Predictions:
        """Return rows `start` to `end` of each of several, in order."""
        return cls(
            *(np.concatenate([getattr(part, name)[start:end] for part, start, end in parts]) for name in COLUMNS)
        )

    def take(self, rows: npt.NDArray[np.intp]) -> Predictions:
        """Return some of the rows, in the order given."""
        return Predictions(*(getattr(self, name)[rows] for name in COLUMNS))


@dataclass(frozen=True)
class Limits:
    """Where images begin to be flagged."""

    low_confidence: float = 0.0
    """Probability of the best class below which the model abstains."""
    outlier_score: float = float("inf")
    """Value of the model's second output above which it abstains."""
    ink_range: tuple[float, float] = (0.0, 1.0)
    """Least and most mean ink seen in training."""


class Engine:
    """A model as one graph or two: one takes floats and gives probabilities, the other takes bytes and gives columns.

    Args:
        floats: One input, float32 (batch, 784) in [0, 1]; first output float32 (batch, classes); optionally a second
            one, float32 (batch,), the higher the less the image looks like a digit.
        limits: Where images begin to be flagged by what `floats` gives.
        pixels: One input, uint8 (batch, 784), and all `COLUMNS` as outputs. Answers what is bytes, or floats that are
            bytes over 255; without it `floats` answers all.

    Raises:
        ModelRefused: A graph's inputs or outputs are not these.
    """

    def __init__(self, floats: Graph, limits: Limits | None = None, pixels: Graph | None = None) -> None:
        floats.check(
            "float",
            PIXELS,
            ranks=([2], [2, 1]),
            types="tensor(float)",
            outputs="float tensors, (batch, classes) and optionally (batch,)",
        )
        if pixels:
            pixels.check(
                "uint8",
                PIXELS,
                ranks=([1, 1, 2, 1, 1],),
                types="tensor(float) tensor(uint8) tensor(uint16)",
                outputs=f"{', '.join(COLUMNS)}, of which probabilities (batch, classes), the others (batch,)",
            )
        self._floats, self._pixels = floats, pixels
        self._limits = limits or Limits()
        self._mean = np.full(PIXELS, 1 / PIXELS, np.float32)
        self.metadata = floats.metadata
        """What the file of the float graph says about itself."""

    @property
    def has_byte_graph(self) -> bool:
        """Whether bytes are answered by a graph of their own."""
        return self._pixels is not None

    def predict(self, images: Sequence[Images]) -> Predictions:
        """Return the answers to all images, in order, from one run, or from one of each graph.

        Args:
            images: At least one array of (n, 784) images; uint8 and float32 may be mixed.
        """
        if self._pixels is None:
            return self._of_floats(_vectors(images))
        if {rows.itemsize for rows in images} == {1}:
            return Predictions(*self._pixels(_joined(images)))
        floats = _vectors(images)
        pixels, are_pixels = _pixels(floats)
        if are_pixels.all():
            return Predictions(*self._pixels(pixels))
        if not are_pixels.any():
            return self._of_floats(floats)
        of_pixels, of_floats = Predictions(*self._pixels(pixels[are_pixels])), self._of_floats(floats[~are_pixels])
        both = Predictions.join([(of_pixels, 0, len(of_pixels)), (of_floats, 0, len(of_floats))])
        return both.take((~are_pixels).argsort(kind="stable").argsort())

    def _of_floats(self, x: npt.NDArray[np.float32]) -> Predictions:
        """Return the float graph's answers to (n, 784) numbers in [0, 1]."""
        probabilities, *scores = self._floats(x)
        digits = probabilities.argmax(axis=1)
        firsts = np.arange(0, probabilities.size, probabilities.shape[1])
        confidences = probabilities.ravel().take(firsts + digits)  # a fifth of the time of a maximum along short rows
        unsure = confidences < np.float32(self._limits.low_confidence)
        if scores:
            unsure |= scores[0] > self._limits.outlier_score
        ink = x.dot(self._mean)
        low, high = map(np.float32, self._limits.ink_range)
        flags = (
            (ink < np.float32(BLANK_BELOW)) * np.uint8(BLANK)
            + (ink > INVERTED_ABOVE) * np.uint8(INVERTED)
            + ((ink < low) | (ink > high)) * np.uint8(OUT_OF_RANGE)
            + unsure * np.uint8(LOW_CONFIDENCE)
        )
        digits = digits.astype(np.uint8 if probabilities.shape[1] <= 256 else np.uint16)
        return Predictions(digits, confidences, probabilities, flags, ink)

    def measure(self, rest: float = 0.0) -> CostCurve:
        """Run batches of images in bytes, of growing size, and return what they cost.

        Args:
            rest: As `cost.measure`.
        """
        return measure(lambda size: self.predict([np.zeros((size, PIXELS), np.uint8)]), self.clock, rest)

    def clock(self) -> float:
        """Return the seconds that count in a run: where one thread does it all, its own, whoever shares the CPU."""
        return time.thread_time() if self._floats.threads == 1 else time.perf_counter()


def _joined(images: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return images[0] if len(images) == 1 else np.concatenate(images)


def _vectors(images: Sequence[Images]) -> npt.NDArray[np.float32]:
    """Return (n, 784) float32 in [0, 1]. Bytes are joined and converted once for all, where nobody sent floats."""
    most = np.float32(255)  # divides: products with 1 / 255 differ in the last bit, which trees of thresholds tell
    if {rows.itemsize for rows in images} == {1}:
        x = _joined(images).astype(np.float32)
        x /= most
        return x
    return _joined([rows if rows.itemsize == 4 else rows / most for rows in images])


def _pixels(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return the bytes next to (n, 784) numbers times 255, and which of the n images are such bytes."""
    levels = vectors * np.float32(255)
    pixels = (levels + np.float32(0.5)).astype(np.uint8)
    levels -= pixels
    return pixels, np.abs(levels, out=levels).max(axis=1) <= PIXEL_TOLERANCE
