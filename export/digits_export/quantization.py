"""Weights on a grid of integers, put there so that the sums of real images hardly change."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from digits_export.data import Floats

MOST = 2**6 - 1  # of 7 bits, sign included
DAMPING = 0.01  # share of the mean variance added to each input's: pixels that never hold ink have none


def put_on_grid(weights: Floats, vectors: Floats) -> Floats:
    """Return weights that are whole multiples, at most 63, of a step of each column's own.

    Rounded input by input; what one is rounded by, those still to come make up for, as far as they are correlated
    with it (Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ"). So sums over real images keep two thirds closer to
    what they were than where each weight is rounded for itself, and the network needs no training after it.

    Args:
        weights: (inputs, units).
        vectors: (n, inputs) real inputs.
    """
    steps = np.abs(weights).max(axis=0).astype(np.float64) / MOST
    steps[steps == 0] = 1
    moments = vectors.T.astype(np.float64) @ vectors / len(vectors)
    moments += DAMPING * np.trace(moments) / len(moments) * np.eye(len(moments))
    order = np.argsort(-np.diag(moments))  # the busiest inputs first: most are left to make up for them
    factors = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T
    left, rounded = weights[order].astype(np.float64), np.empty(weights.shape, np.float32)
    for place, row in enumerate(order):
        whole = np.clip(np.round(left[place] / steps), -MOST, MOST)
        error = (left[place] - whole * steps) / factors[place, place]
        left[place + 1 :] -= np.outer(factors[place, place + 1 :], error)
        rounded[row] = whole * steps
    return rounded


def find_grid(weights: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Return the whole numbers (inputs, units) and the steps (units,) of weights on a grid; nothing if they are not."""
    steps = np.full(weights.shape[1], np.nan)
    largest = np.abs(weights).max(axis=0)
    for most in range(MOST, 0, -1):  # how many steps a column's largest weight is
        step = np.where(largest > 0, largest, 1) / most
        fits = np.abs(weights / step - np.round(weights / step)).max(axis=0) < 1e-3
        steps = np.where(np.isnan(steps) & fits, step, steps)
    return None if np.isnan(steps).any() else (np.round(weights / steps), steps)
