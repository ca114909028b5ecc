"""How unlike a digit an image is, judged before the network by where its ink lies.

A Gaussian over coarse images: 4 x 4 blocks averaged to 7 x 7 cells, the score is the squared Mahalanobis distance
to the mean of all digits. ADR 0011 compares it with the network's own confidence, energy and features, all of
which a network of this size is fooled on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from digits_export.data import Floats

BLOCK = 4  # pixels averaged to a cell, on each axis
CELLS = 28 // BLOCK
RIDGE = 0.01  # share of the mean variance added to each cell's: corner cells hardly ever hold ink


@dataclass(frozen=True)
class InkDensity:
    """The Gaussian, in coordinates where its covariance is the identity."""

    whiten: Floats
    """(49, 49) map from cells to those coordinates."""
    offset: Floats
    """(49,) what moves the mean of the training digits in those coordinates to the origin."""

    def score(self, vectors: Any) -> Any:
        """Return the (n,) squared distance from the mean digit of (n, 784) vectors, as a TensorFlow tensor."""
        import tensorflow as tf  # noqa: PLC0415, TID251

        cells = tf.nn.avg_pool2d(tf.reshape(vectors, (-1, 28, 28, 1)), BLOCK, BLOCK, "VALID")
        gap = tf.matmul(tf.reshape(cells, (-1, CELLS * CELLS)), self.whiten) + self.offset
        return tf.reduce_sum(gap * gap, axis=1)


def fit(vectors: Floats) -> InkDensity:
    """Fit the Gaussian to (n, 784) vectors of real digits."""
    cells = vectors.reshape(-1, CELLS, BLOCK, CELLS, BLOCK).mean(axis=(2, 4), dtype=np.float64).reshape(-1, CELLS**2)
    mean = cells.mean(axis=0)
    covariance = np.cov(cells, rowvar=False)
    covariance += RIDGE * np.trace(covariance) / CELLS**2 * np.eye(CELLS**2)
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    return InkDensity(whiten.astype(np.float32), (-mean @ whiten).astype(np.float32))
