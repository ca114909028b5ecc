"""How a graph reads what MNIST doesn't hold: digits written elsewhere, and its own test images damaged.

Nothing measured here is trained on: drawn digits and damage come from a seed of their own, scikit-learn's digits from
writers whom no recipe has met.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from onnxruntime import InferenceSession
from sklearn.datasets import load_digits

from digits_export import convert, strokes
from digits_export.damage import KINDS
from digits_export.data import Split
from digits_export.package import Abstain

SEED = 2026  # no recipe's
DRAWN = 2000
DAMAGED = 1000  # of each kind
ENLARGED = 10  # times, before they are fitted as MNIST's are
DIGITS = [str(digit) for digit in range(10)]


def measure(opened: InferenceSession, thresholds: Abstain, test: Split, labels: list[str]) -> list[dict[str, Any]]:
    """Return a row for each set: its name, images, how many were right, abstained on, and right of those answered.

    Args:
        opened: The graph, open for inference.
        thresholds: When it abstains.
        test: Images to damage; the first thousand are.
        labels: The graph's; digits written elsewhere are shown only to what answers digits.
    """
    rows = []
    for name, split in _sets(test, digits=labels == DIGITS):
        outputs = convert.run(opened, split.vectors)
        right, answered = outputs[0].argmax(axis=1) == split.labels, ~thresholds.flags(*outputs)
        rows.append(
            {
                "set": name,
                "images": len(split),
                "right": int(right.sum()),
                "abstained": int((~answered).sum()),
                "right_of_answered": int((right & answered).sum()),
            }
        )
    return rows


def _sets(test: Split, *, digits: bool) -> Iterator[tuple[str, Split]]:
    rng = np.random.default_rng(SEED)
    if digits:
        yield "drawn in other styles", Split(*strokes.draw(DRAWN, rng))
        yield "scikit-learn's digits", written_by_others()
    part = test.take(slice(DAMAGED))
    for name, damage in KINDS.items():
        yield name, Split(np.stack([damage(image, rng) for image in part.images]), part.labels)


def written_by_others() -> Split:
    """Return scikit-learn's 1,797 digits of 8 by 8 pixels, enlarged and fitted as MNIST's are."""
    bundled = load_digits()
    sixteenths = np.asarray(bundled.images, np.float32)
    large = [cv2.resize(image, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC) for image in sixteenths]
    images = [strokes.fit(np.clip(image * (255 / 16), 0, 255).astype(np.uint8)) for image in large]
    return Split(np.stack(images), np.asarray(bundled.target, np.int64))
