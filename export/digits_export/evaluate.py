"""What a served graph is worth: every figure of the report, measured on the `.onnx` file by onnxruntime.

Everything returned is plain numbers and lists, ready for JSON; pictures are drawn elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession
from sklearn.metrics import classification_report, confusion_matrix

from digits_export import calibration, convert, elsewhere, package
from digits_export.data import Floats, Images, Labels, Split, to_vectors
from digits_export.deform import STRIP, warp


def evaluate(folder: Path, test: Split, others: Images | None = None) -> dict[str, Any]:
    """Measure a package on test images.

    Args:
        folder: The package.
        test: Images that neither training nor any choice has seen.
        others: (n, 28, 28) uint8 out-of-distribution images, to count on how many it abstains.

    Raises:
        PackageError: The folder is no package, or has other classes than the images.
    """
    opened, properties = package.open_graph(folder)
    labels, thresholds = properties["labels"], package.Abstain(**properties.get("abstain", {}))
    if test.labels.max() >= len(labels):
        raise package.PackageError(
            f"{folder} has {len(labels)} classes, the test images labels up to {test.labels.max()}"
        )
    outputs = convert.run(opened, test.vectors)
    probabilities = outputs[0]
    guesses, abstained = probabilities.argmax(axis=1), thresholds.flags(*outputs)
    # The graph's logits were divided by the temperature; multiplied again they are what training left.
    temperature = properties.get("temperature", 1.0)
    before = calibration.soften(probabilities, 1 / temperature)
    right = guesses == test.labels
    figures = {
        "training": properties.get("training", {}),
        "images": len(test),
        "accuracy": float(right.mean()),
        "classes": per_class(guesses, test.labels, labels),
        "confusion": confusion_matrix(test.labels, guesses, labels=range(len(labels))).tolist(),
        "calibration": {
            "temperature": temperature,
            "ece_before": calibration.expected_calibration_error(before, test.labels),
            "ece": calibration.expected_calibration_error(probabilities, test.labels),
            "negative_log_likelihood": calibration.negative_log_likelihood(probabilities, test.labels),
            "bins_before": calibration.reliability(before, test.labels),
            "bins": calibration.reliability(probabilities, test.labels),
        },
        "abstain": properties.get("abstain", {})
        | {"abstained": float(abstained.mean()), "selective_accuracy": float(right[~abstained].mean())},
        "robustness": robustness(opened, test),
        "elsewhere": elsewhere.measure(opened, thresholds, test, labels),
    }
    if others is not None:
        flagged = thresholds.flags(*convert.run(opened, to_vectors(others)))
        figures["abstain"] |= {
            "out_of_distribution": len(others),
            "out_of_distribution_abstained": float(flagged.mean()),
        }
    return figures


def per_class(guesses: npt.NDArray[np.int64], labels: Labels, names: list[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each class, and their macro and weighted averages."""
    report = classification_report(
        labels, guesses, labels=range(len(names)), target_names=names, output_dict=True, zero_division=0
    )
    return {name: row for name, row in report.items() if isinstance(row, dict)}


def robustness(opened: InferenceSession, test: Split) -> dict[str, list[dict[str, float]]]:
    """Return accuracy by kind and amount of deformation; an amount of 0 is the images as they are."""
    return {
        kind: [
            {"amount": amount, "accuracy": _accuracy(opened, distort(test.images, amount), test.labels)}
            for amount in amounts
        ]
        for kind, (distort, amounts) in DISTORTIONS.items()
    }


def _accuracy(opened: InferenceSession, images: Images, labels: Labels) -> float:
    return float((convert.run(opened, to_vectors(images))[0].argmax(axis=1) == labels).mean())


def rotate(images: Images, degrees: float) -> Images:
    """Turn all images, clockwise."""
    angle = np.deg2rad(degrees)
    return _warp_all(images, [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], 0)


def shift(images: Images, pixels: float) -> Images:
    """Move all images to the right."""
    return _warp_all(images, np.eye(2), pixels)


def add_noise(images: Images, deviation: float) -> Images:
    """Add Gaussian noise, the same for every call; its deviation is a share of full ink."""
    noise = np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    return np.clip(images + 255 * deviation * noise, 0, 255).astype(np.uint8)


def thicken(images: Images, pixels: float) -> Images:
    """Widen every stroke by so many pixels, or thin it where negative."""
    brush = np.ones((abs(round(pixels)) + 1,) * 2, np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.stack([np.asarray(change(image, brush), np.uint8) for image in images])


def _warp_all(images: Images, matrix: Any, right_px: float) -> Images:
    matrices = np.broadcast_to(np.asarray(matrix, np.float32), (STRIP, 2, 2))
    offsets = np.broadcast_to(np.asarray([0, -right_px], np.float32), (STRIP, 2))
    blocks = [images[start : start + STRIP] for start in range(0, len(images), STRIP)]
    return np.concatenate([warp(block, matrices[: len(block)], offsets[: len(block)]) for block in blocks])


DISTORTIONS: dict[str, tuple[Callable[[Images, float], Images], list[float]]] = {
    "rotation in degrees": (rotate, [-40, -30, -20, -10, 0, 10, 20, 30, 40]),
    "shift in pixels": (shift, [-6, -4, -2, 0, 2, 4, 6]),
    "noise, deviation as a share of full ink": (add_noise, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    "stroke width, pixels added": (thicken, [-2, -1, 0, 1, 2]),
}


def worst(probabilities: Floats, labels: Labels, count: int) -> npt.NDArray[np.int64]:
    """Return the rows that were answered wrong, the surest first, at most `count` of them."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return np.asarray(wrong[order][:count])
