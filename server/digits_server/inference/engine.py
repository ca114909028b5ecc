"""One model in onnxruntime: arrays of images in, columns of answers out. The only module that knows onnxruntime."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import; a service has nothing to tell its vendor

import onnxruntime as ort

from digits_server.errors import ModelRefused
from digits_server.inference.cost import CostCurve

PIXELS = 784
"""Numbers in one 28 x 28 image."""

BLANK_BELOW = 1.5 / PIXELS
"""Mean ink under which an image is blank: less than two pixels' worth; the faintest MNIST digit has ten times that."""
INVERTED_ABOVE = 0.5
"""Mean ink above which background and ink must have been swapped; MNIST's boldest digit has 0.42."""

BLANK, INVERTED, OUT_OF_RANGE, LOW_CONFIDENCE = 1, 2, 4, 8
"""Bits of the quality flags, as `digits.v1.QualityFlag`."""

_COST_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_COST_BUDGET_S = 0.01  # for each size, so that a model is measured in a tenth of a second
LATENCY_BUDGET_S = 0.02
"""Longest run that is measured, and so ever made: everybody who comes during a run waits for its end."""

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""(n, 784) images: uint8 from 0 (background) to 255, or float32 in [0, 1]."""


class Predictions:
    """Answers for n images, as columns, and the columns' bytes.

    Args:
        digits: (n,) uint8, index of the most probable class.
        confidences: (n,) float32, its probability.
        probabilities: (n, classes) float32, rows add up to 1.
        flags: (n,) uint8, sets of quality bits.
        ink: (n,) float32, mean ink of the images.
    """

    __slots__ = (
        *("digits", "confidences", "probabilities", "flags", "ink"),
        *("digits_bytes", "confidences_bytes", "probabilities_bytes", "flags_bytes", "bytes_per_image"),
    )

    def __init__(
        self,
        digits: npt.NDArray[np.uint8],
        confidences: npt.NDArray[np.float32],
        probabilities: npt.NDArray[np.float32],
        flags: npt.NDArray[np.uint8],
        ink: npt.NDArray[np.float32],
    ) -> None:
        self.digits = digits
        self.confidences = confidences
        self.probabilities = probabilities
        self.flags = flags
        self.ink = ink
        # Once for the whole batch: cutting bytes for each caller costs a fraction of cutting arrays.
        self.digits_bytes = digits.tobytes()
        self.confidences_bytes = confidences.tobytes()
        self.probabilities_bytes = probabilities.tobytes()
        self.flags_bytes = flags.tobytes()
        self.bytes_per_image = 4 * probabilities.shape[1]

    def __len__(self) -> int:
        return len(self.digits)

    @classmethod
    def join(cls, parts: Sequence[tuple[Predictions, int, int]]) -> Predictions:
        """Return rows `start` to `end` of each of several, in order."""
        columns = ("digits", "confidences", "probabilities", "flags", "ink")
        return cls(
            *(np.concatenate([getattr(part, name)[start:end] for part, start, end in parts]) for name in columns)
        )


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
    """An ONNX model whose first output is the probabilities of the classes.

    Args:
        model: The .onnx file: one input, float32 (batch, 784) in [0, 1]; first output float32 (batch, classes);
            optionally a second one, float32 (batch,), the higher the less the image looks like a digit.
        threads: Threads that one run may use.
        limits: Reads from the file's metadata where images begin to be flagged.

    Raises:
        ModelRefused: The file can't be loaded, or its input or outputs are not these.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int = 1,
        limits: Callable[[Mapping[str, str]], Limits] = lambda _metadata: Limits(),
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
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        """What the file says about itself."""
        self._limits = limits(self.metadata)
        self._mean = np.full(PIXELS, 1 / PIXELS, np.float32)
        self._ink_edges, self._flags = _flag_table(self._limits.ink_range)
        self._input, self._outputs = self._signature()
        # Where one thread does it all, its own time is not lengthened by those it shares interpreter and CPU with.
        self._clock = time.thread_time if threads == 1 else time.perf_counter

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

    def predict(self, images: Sequence[Images]) -> Predictions:
        """Return the answers to all images, in order, from one run.

        Args:
            images: At least one array of (n, 784) images; uint8 and float32 may be mixed.
        """
        x = _vectors(images)  # (n, 784) float32 in [0, 1]
        probabilities, *scores = self._session.run(self._outputs, {self._input: x})
        digits = probabilities.argmax(axis=1)
        firsts = np.arange(0, probabilities.size, probabilities.shape[1])
        confidences = probabilities.ravel().take(firsts + digits)  # a fifth of the time of a maximum along short rows
        unsure = confidences < np.float32(self._limits.low_confidence)
        if scores:
            unsure |= scores[0] > self._limits.outlier_score
        ink = x.dot(self._mean)
        flags = self._flags[self._ink_edges.searchsorted(ink), unsure.view(np.uint8)]
        return Predictions(digits.astype(np.uint8), confidences, probabilities, flags, ink)

    def measure(self, rest: float = 0.0) -> CostCurve:
        """Run batches of growing size and return what they cost, as far as one takes no longer than the budget.

        Args:
            rest: Pause after each run, over its length: how much of the CPU is left to others.
        """
        seconds = [self._time(_COST_SIZES[0], rest)]
        while len(seconds) < len(_COST_SIZES) and seconds[-1] < LATENCY_BUDGET_S / 2:
            seconds.append(self._time(_COST_SIZES[len(seconds)], rest))
        return CostCurve(_COST_SIZES[: len(seconds)], tuple(seconds))

    def _time(self, size: int, rest: float) -> float:
        batch = [np.zeros((size, PIXELS), np.uint8)]
        best = total = self._clocked(batch)  # not the best: the first run of a size allocates
        runs = 0
        while total < _COST_BUDGET_S or runs < 4:
            time.sleep(rest * best)
            seconds = self._clocked(batch)
            best, total, runs = min(best, seconds), total + seconds, runs + 1
        return best

    def _clocked(self, batch: Sequence[Images]) -> float:
        start = self._clock()
        self.predict(batch)
        return self._clock() - start


def _flag_table(ink_range: tuple[float, float]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return edges of mean ink, and the flags by interval between edges and by whether the model is unsure."""
    edges = sorted({BLANK_BELOW, *ink_range, INVERTED_ABOVE})
    middles = [(low + high) / 2 for low, high in pairwise([-1.0, *edges, 2.0])]
    of_ink = [
        BLANK * (ink < BLANK_BELOW)
        + INVERTED * (ink > INVERTED_ABOVE)
        + OUT_OF_RANGE * (not ink_range[0] <= ink <= ink_range[1])
        for ink in middles
    ]
    return np.array(edges, np.float32), np.array([[flags, flags + LOW_CONFIDENCE] for flags in of_ink], np.uint8)


def _vectors(images: Sequence[Images]) -> npt.NDArray[np.float32]:
    """Return (n, 784) float32 in [0, 1]. Bytes are joined and converted once for all, where nobody sent floats."""
    scale = np.float32(1 / 255)
    if {rows.itemsize for rows in images} == {1}:
        pixels = b"".join([rows.data for rows in images])
        x = np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS).astype(np.float32)
        x *= scale
        return x
    return np.concatenate([rows if rows.itemsize == 4 else rows * scale for rows in images], dtype=np.float32)
