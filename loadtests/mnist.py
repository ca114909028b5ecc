"""The MNIST test set, as the load is made of it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "mnist"


def load(folder: Path = FOLDER) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the MNIST test images, (10000, 784) uint8, and their labels, (10000,) uint8."""
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    # IDX headers: 16 bytes for images (magic, count, rows, columns), 8 for labels (magic, count).
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784), np.frombuffer(labels, np.uint8, offset=8)
