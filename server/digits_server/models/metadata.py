"""What a model says about itself in its ONNX metadata, and all that can be wrong with it."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from digits_server.inference.engine import Limits

MAX_CLASSES = 65_536
"""Class indices are uint16 at most."""


@dataclass(frozen=True)
class Metadata:
    """What serving needs to know. Of all but the labels there is a value for unknown."""

    labels: tuple[str, ...] = ()
    """Names of the classes; none only where there is a fault."""
    test_accuracy: float = 0.0
    """Share of the test images it recognises, as its maker states; 0: unknown."""
    dataset: str = ""
    """Name of those images; empty: unknown."""
    limits: Limits = field(default_factory=Limits)
    """Where images begin to be flagged; those of unknown thresholds flag nothing."""
    is_trained_here: bool = False
    """Whether `digits-export train` made it, which always adds reference outputs."""


def read(entries: Mapping[str, str], faults: list[str]) -> Metadata:
    """Return what the metadata says; what is wrong with it is added to `faults`, each with what is allowed.

    Args:
        entries: Names and values in the .onnx file; `digits.labels` is required.
        faults: Sentences so far.
    """
    reader = _Reader(entries, faults)
    labels = reader.entry("digits.labels", list, "a JSON list of the classes' names")
    if labels is None and "digits.labels" not in entries:
        faults.append(
            'model.onnx has no metadata digits.labels: a JSON list of the classes\' names, such as ["0", "1"]; '
            "`digits-export import` adds it"
        )
    elif labels is not None and not (
        0 < len(labels) <= MAX_CLASSES and all(isinstance(label, str | int) for label in labels)
    ):
        faults.append(f"digits.labels is {reprlib.repr(labels)}; allowed are 1 to {MAX_CLASSES:,} strings")
        labels = None
    scale = reader.entry("digits.input_range", list, "[0, 1]")
    if scale not in (None, [0, 1]):
        faults.append(f"digits.input_range is {reprlib.repr(scale)}; allowed is [0, 1], to which the server scales")
    training = reader.entry("digits.training", dict, "a JSON object")
    abstain = reader.entry("digits.abstain", dict, "a JSON object")
    dataset = (training or {}).get("dataset", "")
    if not isinstance(dataset, str):
        faults.append(f"digits.training: dataset is {reprlib.repr(dataset)}; allowed is a string")
    confidence = reader.number("digits.abstain", abstain, "confidence", 0.0, high=1.0)
    outlier_score = reader.number("digits.abstain", abstain, "outlier_score", float("inf"))
    return Metadata(
        tuple(map(str, labels or ())),
        reader.number("digits.training", training, "test_accuracy", 0.0, high=1.0),
        str(dataset),
        Limits(confidence, outlier_score, reader.ink_range(len(labels or ()))),
        is_trained_here=bool(training and "recipe" in training),
    )


class _Reader:
    """Reads JSON entries one by one and collects their faults."""

    def __init__(self, entries: Mapping[str, str], faults: list[str]) -> None:
        self._entries, self._faults = entries, faults

    def entry(self, name: str, kind: type, allowed: str) -> Any:
        """Return an entry's value; None if there is none, or not of that kind."""
        if name not in self._entries:
            return None
        try:
            value = json.loads(self._entries[name])
        except ValueError as error:
            self._faults.append(
                f"{name} is {reprlib.repr(self._entries[name])}, no JSON ({error}); allowed is {allowed}"
            )
            return None
        if not isinstance(value, kind):
            self._faults.append(f"{name} is {reprlib.repr(value)}; allowed is {allowed}")
            return None
        return value

    def number(
        self, name: str, entry: dict[str, Any] | None, part: str, unknown: float, high: float = float("inf")
    ) -> float:
        """Return a number from 0 to `high` out of an entry; `unknown` if it is not there."""
        value = (entry or {}).get(part)
        if value is None:
            return unknown
        if not _is_number(value) or not 0 <= value <= high:
            self._faults.append(f"{name}: {part} is {reprlib.repr(value)}; allowed is a number from 0 to {high:g}")
            return unknown
        return float(value)

    def ink_range(self, labels: int) -> tuple[float, float]:
        """Return the least and the most mean ink seen in training, after a check of what drift is measured against."""
        reference = self.entry("digits.reference", dict, "a JSON object") or {}
        classes = reference.get("class_shares")
        if classes is not None and not (_are_numbers(classes) and len(classes) == labels):
            self._faults.append(
                f"digits.reference: class_shares is {reprlib.repr(classes)}; allowed is a list of {labels} numbers"
            )
        histogram: Any = reference.get("ink_histogram")
        if histogram is None:
            return Limits.ink_range
        edges: Any = histogram.get("edges") if isinstance(histogram, dict) else None
        shares: Any = histogram.get("shares") if isinstance(histogram, dict) else None
        is_good = _are_numbers(edges) and len(edges) > 1 and edges == sorted(edges)
        if not is_good or not (shares is None or (_are_numbers(shares) and len(shares) == len(edges) - 1)):
            self._faults.append(
                f"digits.reference: ink_histogram is {reprlib.repr(histogram)}; allowed is an object whose edges are "
                "ascending numbers, at least two, and whose shares are one fewer"
            )
            return Limits.ink_range
        return float(edges[0]), float(edges[-1])


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
