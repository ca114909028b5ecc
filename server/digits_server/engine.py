"""One model in onnxruntime: arrays of images in, columns of answers out. The only module that knows onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from digits_server.errors import ModelRefused

PIXELS = 784
"""Numbers in one 28 x 28 image."""

BLANK_BELOW = 1.5 / PIXELS
"""Mean ink under which an image is blank: less than two pixels' worth; the faintest MNIST digit has ten times that."""
INVERTED_ABOVE = 0.5
"""Mean ink above which background and ink must have been swapped; MNIST's boldest digit has 0.42."""

BLANK, INVERTED, OUT_OF_RANGE, LOW_CONFIDENCE = 1, 2, 4, 8
"""Bits of the quality flags, as `digits.v1.QualityFlag`."""

_COST_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_COST_BUDGET_S = 0.02  # for each size, so that a model is measured in well under half a second

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(n, 784) images: uint8 from 0 (background) to 255, or float32 in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers for n images, as columns."""

    digits: npt.NDArray[np.uint8]
    """(n,) index of the most probable class."""
    confidences: npt.NDArray[np.float32]
    """(n,) its probability."""
    probabilities: npt.NDArray[np.float32]
    """(n, classes), rows add up to 1."""
    flags: npt.NDArray[np.uint8]
    """(n,) sets of quality bits."""

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, rows: slice) -> Predictions:
        return Predictions(self.digits[rows], self.confidences[rows], self.probabilities[rows], self.flags[rows])

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, column) for part in parts]) for column in cls.__slots__))


@dataclass(frozen=True)
class CostCurve:
    """What a run costs, by its size: measured, with straight lines between the points."""

    sizes: tuple[int, ...]
    """Rows in a run, ascending."""
    seconds: tuple[float, ...]
    """Median time of such a run."""

    def __call__(self, rows: int) -> float:
        """Return the seconds that running `rows` takes, in as many batches of the best size as it needs."""
        return float(np.interp(min(rows, self.sizes[-1]), self.sizes, self.seconds)) * max(1, rows / self.sizes[-1])

    @property
    def best_batch_size(self) -> int:
        """Smallest size that reaches 95 % of the best images per second."""
        rates = [size / seconds for size, seconds in zip(self.sizes, self.seconds, strict=True)]
        return next(size for size, rate in zip(self.sizes, rates, strict=True) if rate >= 0.95 * max(rates))

    @property
    def gain(self) -> float:
        """Images per second in batches of the best size, over images per second alone."""
        size = self.best_batch_size
        return size * self.seconds[0] / self.seconds[self.sizes.index(size)]


class Engine:
    """An ONNX model whose first output is the probabilities of the classes.

    Args:
        model: The .onnx file: one input, float32 (batch, 784) in [0, 1]; first output float32 (batch, classes);
            optionally a second one, float32 (batch,), the higher the less the image looks like a digit.
        threads: Threads that one run may use.
        low_confidence: Probability of the best class below which an image is flagged.
        outlier_score: Value of the second output above which an image is flagged.
        ink_range: Least and most mean ink seen in training; images outside are flagged.

    Raises:
        ModelRefused: The file can't be loaded, or its input or outputs are not these.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int = 1,
        low_confidence: float = 0.0,
        outlier_score: float = float("inf"),
        ink_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a CPU
        options.log_severity_level = 4  # faults are raised; a second copy on stderr would not be JSON
        try:
            self._session = ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for its errors
            raise ModelRefused(f"model.onnx can't be loaded: {error}") from error
        self._low_confidence = np.float32(low_confidence)
        self._outlier_score = np.float32(outlier_score)
        self._ink_range = ink_range
        self._mean = np.full(PIXELS, 1 / PIXELS, np.float32)
        self._input, self._outputs = self._signature()

    def _signature(self) -> tuple[str, list[str]]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shapes = [(i.type, len(i.shape), i.shape[1:], isinstance(i.shape[0], int)) for i in inputs]
        if shapes != [("tensor(float)", 2, [PIXELS], False)]:
            raise ModelRefused(
                f"inputs are {[(i.name, i.type, i.shape) for i in inputs]}; allowed is one float (batch, {PIXELS})"
            )
        if [len(o.shape) for o in outputs] not in ([2], [2, 1]) or any(o.type != "tensor(float)" for o in outputs):
            raise ModelRefused(
                f"outputs are {[(o.name, o.type, o.shape) for o in outputs]}; allowed are float tensors, "
                "(batch, classes) and optionally (batch,)"
            )
        return inputs[0].name, [o.name for o in outputs]

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says about itself."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def predict(self, images: Sequence[Images]) -> Predictions:
        """Return the answers to all images, in order, from one run.

        Args:
            images: At least one array of (n, 784) images; uint8 and float32 may be mixed.
        """
        x = _vectors(images)  # (n, 784) float32 in [0, 1]
        probabilities, *scores = self._session.run(self._outputs, {self._input: x})
        digits = probabilities.argmax(axis=1).astype(np.uint8)
        confidences = probabilities.max(axis=1)
        ink = x @ self._mean  # (n,) mean of each image
        unsure = confidences < self._low_confidence
        if scores:
            unsure |= scores[0] > self._outlier_score
        flags = unsure.astype(np.uint8) * np.uint8(LOW_CONFIDENCE)
        flags |= (ink < BLANK_BELOW).astype(np.uint8) * np.uint8(BLANK)
        flags |= (ink > INVERTED_ABOVE).astype(np.uint8) * np.uint8(INVERTED)
        flags |= ((ink < self._ink_range[0]) | (ink > self._ink_range[1])).astype(np.uint8) * np.uint8(OUT_OF_RANGE)
        return Predictions(digits, confidences, probabilities, flags)

    def measure(self, max_size: int = _COST_SIZES[-1]) -> CostCurve:
        """Run batches of growing size and return what they cost."""
        sizes = (*(size for size in _COST_SIZES if size < max_size), max_size)
        return CostCurve(sizes, tuple(self._time(size) for size in sizes))

    def _time(self, size: int) -> float:
        batch = [np.zeros((size, PIXELS), np.uint8)]
        self.predict(batch)  # the first run of a size allocates
        end, ticks = time.perf_counter() + _COST_BUDGET_S, [time.perf_counter()]
        while ticks[-1] < end or len(ticks) < 4:
            self.predict(batch)
            ticks.append(time.perf_counter())
        return median(b - a for a, b in pairwise(ticks))


def _vectors(images: Sequence[Images]) -> npt.NDArray[np.float32]:
    """Return (n, 784) float32 in [0, 1]: normalised once for all where nobody sent floats."""
    scale = np.float32(1 / 255)
    if all(rows.dtype == np.uint8 for rows in images):
        return np.multiply(images[0] if len(images) == 1 else np.concatenate(images), scale, dtype=np.float32)
    return np.concatenate([rows if rows.dtype == np.float32 else rows * scale for rows in images], dtype=np.float32)
