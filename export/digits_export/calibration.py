"""How far a probability can be believed: expected calibration error, and the temperature that makes it small."""

from __future__ import annotations

import numpy as np

from digits_export.data import Floats, Labels

BINS = 15  # of equal width, as Guo et al. (2017), "On Calibration of Modern Neural Networks"
TINY = 1e-12


def soften(probabilities: Floats, temperature: float) -> Floats:
    """Return (n, 10) probabilities as if their logits had been divided by `temperature`."""
    logits = np.log(np.maximum(probabilities, TINY)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> float:
    """Return the mean of -ln p(label) over the rows of (n, 10) probabilities."""
    return float(_losses(probabilities, labels).mean())


def _losses(probabilities: Floats, labels: Labels) -> Floats:
    return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY)))


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """Return the temperature in [0.1, 10] that makes held-out labels most likely, to three digits.

    The likelihood has one maximum in the temperature, so halving a bracket around it (golden section, in the
    logarithm) finds it.
    """
    low, high = np.log(0.1), np.log(10.0)
    golden = (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - golden * (high - low), low + golden * (high - low)
        costs = [negative_log_likelihood(soften(probabilities, float(np.exp(at))), labels) for at in (left, right)]
        low, high = (low, right) if costs[0] < costs[1] else (left, high)
    return float(f"{np.exp((low + high) / 2):.3g}")


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
