"""How far a probability can be believed: expected calibration error, and the temperature that makes it small."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from digits_export.data import Floats, Labels

BINS = 15  # of equal width, as Guo et al. (2017), "On Calibration of Modern Neural Networks"
TINY = 1e-12


def soften(probabilities: Floats, temperature: float) -> Floats:
    """Return (n, 10) probabilities as if their logits had been divided by `temperature`."""
    logits = np.log(np.maximum(probabilities, TINY), dtype=np.float64)
    return np.asarray(softmax(logits / temperature, axis=1), np.float32)


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> float:
    """Return the mean of -ln p(label) over the rows of (n, 10) probabilities."""
    return float(_losses(probabilities, labels).mean())


def _losses(probabilities: Floats, labels: Labels) -> Floats:
    return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY)))


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """Return the temperature in [0.1, 10] that makes held-out labels most likely, to three digits."""

    def cost(logarithm: float) -> float:
        return negative_log_likelihood(soften(probabilities, np.exp(logarithm)), labels)

    found = minimize_scalar(cost, bounds=np.log([0.1, 10]), options={"xatol": 1e-4})
    return float(f"{np.exp(found.x):.3g}")


def helpful_temperature(probabilities: Floats, labels: Labels) -> float:
    """Return a temperature for held-out labels, and 1 where it would not make their calibration error smaller.

    The one nearest to 1 of those whose likelihood is within one standard error of the best (Breiman et al. 1984):
    thousands of images tell a temperature to a tenth or so, and the least change that they ask for is the safest.
    """
    best = fit_temperature(probabilities, labels)
    least = _losses(soften(probabilities, best), labels)
    for temperature in np.geomspace(1, best, 50):
        if is_as_good(_losses(soften(probabilities, float(temperature)), labels), least):
            break
    scaled = expected_calibration_error(soften(probabilities, float(temperature)), labels)
    helps = scaled < expected_calibration_error(probabilities, labels)
    return float(f"{temperature:.3g}") if helps else 1.0


def best_losses(probabilities: Floats, labels: Labels) -> Floats:
    """Return -ln p(label) of each image under the likeliest temperature: what is known, however surely it is said."""
    return _losses(soften(probabilities, fit_temperature(probabilities, labels)), labels)


def is_as_good(losses: Floats, least: Floats) -> bool:
    """Return whether the mean of losses is within one standard error of that of the least, image by image."""
    worse = losses - least
    return bool(worse.mean() <= worse.std() / np.sqrt(len(worse)))


def reliability(probabilities: Floats, labels: Labels) -> list[dict[str, float]]:
    """Return, for each bin of confidence that has images, its `share` of them, mean `confidence` and `accuracy`."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "share": float((which == index).mean()),
            "confidence": float(confidence[which == index].mean()),
            "accuracy": float(right[which == index].mean()),
        }
        for index in np.unique(which)
    ]


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Return the mean gap between confidence and accuracy over the bins, weighted by their images, in [0, 1]."""
    return sum(row["share"] * abs(row["confidence"] - row["accuracy"]) for row in reliability(probabilities, labels))
