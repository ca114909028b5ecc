"""Model packages on disk: which there are, and all that must be true before one may answer."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digits_server.errors import ModelRefused
from digits_server.inference.cost import CostCurve
from digits_server.inference.engine import PIXELS, Engine, Limits

GOLDEN_TOLERANCE = 1e-4
"""Largest difference from the package's own answers. Exports agree to 1e-5; other CPUs add up in another order."""
FILES = ("model.onnx", "golden.npz")
"""What of a package the server reads; the rest is for people."""

Signature = tuple[object, ...]
"""Tells one state of a package's files from another: size, time of change and inode of each, or why it can't be had."""


class Key(NamedTuple):
    """A version of a model, as its folders are named. Versions sort as numbers."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def folder(self, root: Path) -> Path:
        """Return where its files are."""
        return root / self.name / str(self.version)


@dataclass(frozen=True)
class Package:
    """A verified model package, ready to answer."""

    key: Key
    labels: tuple[str, ...]
    test_accuracy: float
    """Share of the MNIST test images it recognises, as its maker states."""
    engine: Engine
    cost: CostCurve
    """Measured on this machine, when it was loaded."""

    @property
    def name(self) -> str:
        """Its model's name in requests."""
        return self.key.name

    @property
    def version(self) -> str:
        """Its version in requests."""
        return str(self.key.version)


def find(root: Path, needed: Container[str] = ()) -> dict[Key, Signature]:
    """Return every `<name>/<version>/` under `root` that holds a model.onnx and whose version is a whole number.

    Args:
        root: The folder of models.
        needed: Names of models that must not be passed over if their folders can't be read, as others are.

    Raises:
        OSError: `root` can't be read, or the folder of a needed model.
    """
    found = {}
    for model in sorted(root.iterdir()):
        if not (model.is_dir() and model.name.isprintable()):
            continue
        try:
            versions = [folder.name for folder in model.iterdir()]
        except OSError:
            if model.name in needed:
                raise
            continue
        for version in versions:
            if version.isascii() and version.isdecimal() and version == str(int(version)):  # one spelling each
                key = Key(model.name, int(version))
                if signature := sign(key.folder(root)):
                    found[key] = signature
    return found


def sign(folder: Path) -> Signature:
    """Return the signature of a package's files; empty if there is no model.onnx."""
    states: list[object] = []
    for name in FILES:
        try:
            state = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            if name == "model.onnx":
                return ()
            states.append(None)
        except OSError as error:
            states.append(error.errno)
        else:
            states.append((state.st_size, state.st_mtime_ns, state.st_ino))
    return tuple(states)


def load(root: Path, key: Key, *, threads: int, rest: float = 0.0) -> Package:
    """Load, verify and measure a package; measuring warms it, too.

    Args:
        root: The models folder.
        key: Which package of it.
        threads: Threads of one run.
        rest: As `Engine.measure`.

    Raises:
        ModelRefused: Something about it is wrong; the message says what.
    """
    folder = key.folder(root)
    try:
        engine = Engine(folder / "model.onnx", threads=threads, limits=_limits)
        labels = tuple(map(str, json.loads(engine.metadata["digits.labels"])))
        test_accuracy = float(json.loads(engine.metadata["digits.training"])["test_accuracy"])
        _verify(engine, folder / "golden.npz", len(labels))
        return Package(key, labels, test_accuracy, engine, engine.measure(rest))
    except ModelRefused:
        raise
    except Exception as error:  # a damaged file may raise anything, a damaged graph too when it runs
        raise ModelRefused(f"package can't be read: {type(error).__name__}: {error}") from error


def _verify(engine: Engine, golden: Path, classes: int) -> None:
    """Compare the engine's answers to those that the package promises."""
    with np.load(golden) as arrays:
        inputs, expected = arrays["inputs"], arrays["probabilities"]
    shapes = inputs.dtype, inputs.shape[1:], expected.shape
    if not len(inputs) or shapes != (np.uint8, (PIXELS,), (len(inputs), classes)):
        raise ModelRefused(
            f"golden.npz has inputs {inputs.dtype} {inputs.shape} and probabilities {expected.shape}; allowed are "
            f"uint8 (n, {PIXELS}) and (n, {classes}), n > 0"
        )
    answers = engine.predict([inputs]).probabilities
    if answers.shape != expected.shape:
        raise ModelRefused(f"answers have the shape {answers.shape}; the golden ones have {expected.shape}")
    difference = np.abs(answers - expected).max()
    if not difference <= GOLDEN_TOLERANCE:  # also refuses NaN
        raise ModelRefused(f"answers differ from the golden ones by {difference:.2g}; allowed is {GOLDEN_TOLERANCE:g}")


def _limits(metadata: Mapping[str, str]) -> Limits:
    abstain = json.loads(metadata["digits.abstain"])
    ink = json.loads(metadata["digits.reference"])["ink_histogram"]["edges"]
    return Limits(abstain["confidence"], abstain.get("outlier_score", float("inf")), (ink[0], ink[-1]))
