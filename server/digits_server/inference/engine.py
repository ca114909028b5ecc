"""One model in onnxruntime: arrays of images in, columns of answers out. The only module that knows onnxruntime."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import; a service has nothing to tell its vendor

import onnxruntime as ort

from digits_server.errors import ModelRefused
from digits_server.inference.cost import CostCurve, measure

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


class Predictions:
    """Answers for n images, as columns, and the columns' bytes.

    Args:
        digits: (n,) uint8, or uint16 where there are more than 256 classes: index of the most probable class.
        confidences: (n,) float32, its probability.
        probabilities: (n, classes) float32, rows add up to 1.
        flags: (n,) uint8, sets of quality bits.
        ink: (n,) float32, mean ink of the images.
    """

    __slots__ = (
        *COLUMNS,
        *("digits_bytes", "confidences_bytes", "probabilities_bytes", "flags_bytes", "bytes_per_image"),
    )

    def __init__(
        self,
        digits: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
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
        return cls(
            *(np.concatenate([getattr(part, name)[start:end] for part, start, end in parts]) for name in COLUMNS)
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


class Graph:
    """An ONNX file as onnxruntime runs it. Nothing of the files is needed, or mapped into memory, once it is loaded.

    Args:
        path: The .onnx file; weights that it keeps in a file of their own are in `<path>.data`.
        threads: Threads that one run may use.

    Raises:
        ModelRefused: The file can't be loaded.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a CPU
        options.log_severity_level = 4  # faults are raised; a second copy on stderr would not be JSON
        weights = path.with_name(f"{path.name}.data")
        try:
            if weights.exists():
                data = weights.read_bytes()
                options.add_external_initializers_from_files_in_memory([weights.name], [data], [len(data)])
            # From bytes: a file that is written over while its model serves must change no answer.
            self._session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for its errors
            raise ModelRefused(f"{path.name} can't be loaded: {error}") from error
        self.threads = threads
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        """What the file says about itself."""
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._input = self._session.get_inputs()[0].name if self._session.get_inputs() else ""

    def __call__(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Run on (n, 784) images and return the outputs."""
        outputs: list[npt.NDArray[Any]] = self._session.run(self._outputs, {self._input: images})
        return outputs

    def check(self, element: str, *, ranks: Sequence[Sequence[int]], types: str, outputs: str) -> None:
        """Check what the graph takes and gives.

        Args:
            element: Type of the input's elements, as ONNX calls it; the input is (any number, 784) of them.
            ranks: Allowed numbers of dimensions of the outputs.
            types: Types of the outputs' elements that are allowed.
            outputs: What outputs are allowed, in words.

        Raises:
            ModelRefused: It takes or gives something else.
        """
        given, made = self._session.get_inputs(), self._session.get_outputs()
        faults = []
        shapes = [(i.type, len(i.shape), i.shape[1:], isinstance(i.shape[0], int)) for i in given if i.shape]
        if shapes != [(f"tensor({element})", 2, [PIXELS], False)]:
            found = [(i.name, i.type, i.shape) for i in given]
            faults.append(f"inputs are {found}; allowed is one {element} (batch, {PIXELS})")
        if [len(o.shape) for o in made] not in ranks or any(o.type not in types for o in made):
            faults.append(f"outputs are {[(o.name, o.type, o.shape) for o in made]}; allowed are {outputs}")
        if faults:
            raise ModelRefused("; ".join(faults))


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
            ranks=([2], [2, 1]),
            types="tensor(float)",
            outputs="float tensors, (batch, classes) and optionally (batch,)",
        )
        if pixels:
            pixels.check(
                "uint8",
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
            return self._of_floats(images)
        parts = [_as_pixels(rows) for rows in images]
        pixels = [rows for rows in parts if rows.itemsize == 1]
        if len(pixels) == len(parts):
            return self._of_pixels(self._pixels, parts)
        if not pixels:
            return self._of_floats(parts)
        floats = [rows for rows in parts if rows.itemsize == 4]
        answers = {1: self._of_pixels(self._pixels, pixels), 4: self._of_floats(floats)}
        ends = {1: 0, 4: 0}
        slices = []
        for rows in parts:
            start = ends[rows.itemsize]
            ends[rows.itemsize] = end = start + len(rows)
            slices.append((answers[rows.itemsize], start, end))
        return Predictions.join(slices)

    @staticmethod
    def _of_pixels(graph: Graph, images: Sequence[Images]) -> Predictions:
        return Predictions(*graph(images[0] if len(images) == 1 else np.concatenate(images)))

    def _of_floats(self, images: Sequence[Images]) -> Predictions:
        x = _vectors(images)  # (n, 784) float32 in [0, 1]
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
        # Where one thread does it all, its own time is not lengthened by those it shares interpreter and CPU with.
        clock = time.thread_time if self._floats.threads == 1 else time.perf_counter
        return measure(lambda size: self.predict([np.zeros((size, PIXELS), np.uint8)]), clock, rest)


def _as_pixels(rows: Images) -> Images:
    """Return images as bytes if that is what they are, by their type or by their values."""
    if rows.itemsize == 1:
        return rows
    levels = rows * np.float32(255)
    pixels = (levels + np.float32(0.5)).astype(np.uint8)
    return pixels if np.abs(levels - pixels).max() <= PIXEL_TOLERANCE else rows


def _vectors(images: Sequence[Images]) -> npt.NDArray[np.float32]:
    """Return (n, 784) float32 in [0, 1]. Bytes are joined and converted once for all, where nobody sent floats."""
    scale = np.float32(1 / 255)
    if {rows.itemsize for rows in images} == {1}:
        x = np.concatenate(images).astype(np.float32)
        x *= scale
        return x
    return np.concatenate([rows if rows.itemsize == 4 else rows * scale for rows in images], dtype=np.float32)
