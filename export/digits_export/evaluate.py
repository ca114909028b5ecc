"""What a served graph is worth: every figure of the report, measured on the `.onnx` file by onnxruntime.

Everything returned is plain numbers and lists, ready for JSON; pictures are drawn elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from digits_export import calibration, convert, package
from digits_export.data import Floats, Images, Labels, Split, to_vectors
from digits_export.deform import STRIP, warp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt


def evaluate(folder: Path, test: Split, strangers: Images | None = None) -> dict[str, Any]:
    """Measure a package on test images.

    Args:
        folder: The package.
        test: Images that neither training nor any choice has seen.
        strangers: (n, 28, 28) uint8 images that are not digits, to count how many are refused.
    """
    opened = convert.session(folder / "model.onnx")
    properties = package.read_properties(opened)
    thresholds = package.Abstain(**properties["abstain"])
    probabilities, scores = convert.run(opened, test.vectors)
    guesses = probabilities.argmax(axis=1)
    refused = thresholds.flags(probabilities, scores)
    # The graph's logits were divided by the temperature; multiplied again they are what training left.
    before = calibration.soften(probabilities, 1 / properties["temperature"])
    figures = {
        "training": properties["training"],
        "images": len(test),
        "accuracy": float((guesses == test.labels).mean()),
        "classes": per_class(guesses, test.labels),
        "confusion": confusion(guesses, test.labels).tolist(),
        "calibration": {
            "temperature": properties["temperature"],
            "ece_before": calibration.expected_calibration_error(before, test.labels),
            "ece": calibration.expected_calibration_error(probabilities, test.labels),
            "negative_log_likelihood": calibration.negative_log_likelihood(probabilities, test.labels),
            "bins_before": calibration.reliability(before, test.labels),
            "bins": calibration.reliability(probabilities, test.labels),
        },
        "abstain": properties["abstain"]
        | {
            "digits_refused": float(refused.mean()),
            "accuracy_on_the_rest": float((guesses == test.labels)[~refused].mean()),
        },
        "robustness": robustness(opened, test),
    }
    if strangers is not None:
        flagged = thresholds.flags(*convert.run(opened, to_vectors(strangers)))
        figures["abstain"] |= {"strangers": len(strangers), "strangers_refused": float(flagged.mean())}
    return figures


def confusion(guesses: npt.NDArray[np.int64], labels: Labels) -> npt.NDArray[np.int64]:
    """Return the (10, 10) counts of images by true digit (row) and answer (column)."""
    counts = np.zeros((10, 10), np.int64)
    np.add.at(counts, (labels, guesses), 1)
    return counts


def per_class(guesses: npt.NDArray[np.int64], labels: Labels) -> list[dict[str, float]]:
    """Return precision, recall, F1 and support of each digit; 0 where a digit was never answered or never shown."""
    counts = confusion(guesses, labels)
    report = []
    for digit in range(10):
        hits, answered, shown = (int(n) for n in (counts[digit, digit], counts[:, digit].sum(), counts[digit].sum()))
        precision, recall = hits / max(answered, 1), hits / max(shown, 1)
        f1 = 2 * hits / max(answered + shown, 1)
        report.append({"digit": digit, "precision": precision, "recall": recall, "f1": f1, "support": shown})
    return report


def robustness(opened: Any, test: Split) -> dict[str, list[dict[str, float]]]:
    """Return accuracy by kind and amount of deformation; an amount of 0 is the images as they are."""
    return {
        kind: [
            {"amount": amount, "accuracy": _accuracy(opened, distort(test.images, amount), test.labels)}
            for amount in amounts
        ]
        for kind, (distort, amounts) in DISTORTIONS.items()
    }


def _accuracy(opened: Any, images: Images, labels: Labels) -> float:
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
