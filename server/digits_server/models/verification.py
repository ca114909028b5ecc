"""Whether a model answers as its package promises, on this machine's processor; asked before it may serve."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from digits_server.inference.engine import PIXELS, Engine

REFERENCE_TOLERANCE = 1e-4
"""Largest difference from the package's own answers. Exports agree to 1e-5; other CPUs add up in another order."""
AGREEMENT_TOLERANCE = 1e-5
"""Largest difference between the two graphs of one model. Integers are exact and the rest adds up in float32: 2e-6 was
seen. Kernels that add products of bytes in 16 bits, and saturate, are off by hundredths."""
SUM_TOLERANCE = 1e-3
"""How far probabilities may be from adding up to 1: a softmax in half precision is within it, no logits are."""


@dataclass(frozen=True)
class Reference:
    """Images, and the answers to them that a package promises."""

    inputs: npt.NDArray[np.uint8]  # (n, 784)
    probabilities: npt.NDArray[np.float32]  # (n, classes)


def find_reference(folder: Path) -> Path | None:
    """Return the file of a package's reference outputs, also under the name that older packages give it."""
    return next((path for name in ("reference.npz", "golden.npz") if (path := folder / name).exists()), None)


def read_reference(path: Path, faults: list[str]) -> Reference | None:
    """Return a package's reference outputs; None, with the faults that were found, if they can't be used."""
    try:
        with np.load(path) as arrays:
            inputs, probabilities = arrays["inputs"], arrays["probabilities"]
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything
        faults.append(
            f"{path.name} can't be read: {type(error).__name__}: {error}; it holds the arrays inputs and probabilities"
        )
        return None
    is_pair = probabilities.ndim == 2 and len(probabilities) == len(inputs) > 0
    if (inputs.dtype, inputs.shape[1:]) != (np.uint8, (PIXELS,)) or not is_pair:
        faults.append(
            f"{path.name} has inputs {inputs.dtype} {inputs.shape} and probabilities {probabilities.shape}; allowed "
            f"are uint8 (n, {PIXELS}) and (n, classes), n > 0"
        )
        return None
    return Reference(inputs, probabilities)


def probes(reference: Reference | None) -> npt.NDArray[np.uint8]:
    """Return (n, 784) images to try a model on: the reference's, a black one, a white one, and noise.

    White is what makes integer kernels saturate, if anything does.
    """
    noise = np.frombuffer(random.Random(0).randbytes(16 * PIXELS), np.uint8).reshape(16, PIXELS)  # noqa: S311 - no secret
    flat = np.repeat(np.array([[0], [255]], np.uint8), PIXELS, axis=1)
    return np.concatenate([*([reference.inputs] if reference else []), flat, noise])


def check_answers(engine: Engine, classes: int, reference: Reference | None, faults: list[str]) -> None:
    """Add what is wrong with a float graph's answers.

    Args:
        engine: The float graph alone.
        classes: Number of labels; 0: unknown.
        reference: What it must answer, if the package says.
        faults: Sentences so far.
    """
    images = probes(reference)
    try:
        answers = engine.predict([images]).probabilities
    except Exception as error:  # noqa: BLE001 - a damaged graph may raise anything
        faults.append(f"model.onnx fails on {len(images)} images: {error}")
        return
    if answers.shape[0] != len(images) or (classes and answers.shape[1] != classes):
        faults.append(
            f"model.onnx answers {answers.shape} to {len(images)} images; digits.labels names {classes} classes"
        )
        return
    sums = answers.sum(axis=1)
    # Also says no to NaN.
    if not (answers.min() >= -SUM_TOLERANCE and np.abs(sums - 1).max() <= SUM_TOLERANCE):
        faults.append(
            f"model.onnx gives no probabilities but values from {answers.min():.3g} to {answers.max():.3g}, which add "
            f"up to {sums.min():.3g} to {sums.max():.3g} for an image; allowed are 0 to 1, adding up to 1. If they are "
            "logits, `digits-export import` adds the softmax"
        )
    if reference is None:
        return
    expected = reference.probabilities
    if answers.shape[1] != expected.shape[1]:
        faults.append(f"the reference outputs have {expected.shape[1]} classes, model.onnx has {answers.shape[1]}")
        return
    difference = np.abs(answers[: len(expected)] - expected).max()
    if not difference <= REFERENCE_TOLERANCE:
        faults.append(
            f"answers differ from the reference outputs by {difference:.2g}; allowed is {REFERENCE_TOLERANCE:g}"
        )


def disagreement(both: Engine, floats: Engine, images: npt.NDArray[np.uint8]) -> str:
    """Return how the byte graph's answers differ from the float graph's; empty if they do not.

    Args:
        both: An engine that answers bytes by the byte graph.
        floats: One of the same float graph alone.
        images: (n, 784) images.
    """
    found, expected = both.predict([images]), floats.predict([images])
    for column in ("probabilities", "confidences", "ink"):
        ours, theirs = getattr(found, column), getattr(expected, column)
        if ours.shape != theirs.shape:
            return f"its {column} have the shape {ours.shape}, those of model.onnx {theirs.shape}"
        difference = np.abs(ours - theirs).max()
        if not difference <= AGREEMENT_TOLERANCE:
            return (
                f"its {column} differ from those of model.onnx by {difference:.2g}; allowed is {AGREEMENT_TOLERANCE:g}"
            )
    chosen = expected.probabilities[
        np.arange(len(images)), found.digits
    ]  # of two that are equally good, either is right
    if not (chosen >= expected.confidences - AGREEMENT_TOLERANCE).all():
        return "its digits are not the most probable classes"
    unequal = int((found.flags != expected.flags).sum())
    return f"its flags differ from those of model.onnx for {unequal} of {len(images)} images" if unequal else ""
