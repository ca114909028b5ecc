"""What a pen leaves that is no digit: letters, signs, shapes and scribbles, drawn by code, and digits that touch.

A network that has met only digits answers one of them to anything, and surely: an asterisk is a 4. These teach it to
be unsure (Hendrycks et al. 2019, "Deep Anomaly Detection with Outlier Exposure"): it is told that each digit is as
likely as any other. Letters that some people's digits look like (b, g, I, O, q, S, y, Z and their kin) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from digits_export.strokes import Path, Stroke, arc, fit, ink

LETTERS: dict[str, list[Path]] = {
    "A": [[(0, 1), (0.5, 0), (1, 1)], [(0.2, 0.6), (0.8, 0.6)]],
    "E": [[(0.9, 0), (0.1, 0), (0.1, 1), (0.9, 1)], [(0.1, 0.5), (0.7, 0.5)]],
    "F": [[(0.9, 0), (0.1, 0), (0.1, 1)], [(0.1, 0.5), (0.7, 0.5)]],
    "H": [[(0.1, 0), (0.1, 1)], [(0.9, 0), (0.9, 1)], [(0.1, 0.5), (0.9, 0.5)]],
    "K": [[(0.1, 0), (0.1, 1)], [(0.9, 0), (0.1, 0.55), (0.9, 1)]],
    "M": [[(0, 1), (0.1, 0), (0.5, 0.7), (0.9, 0), (1, 1)]],
    "N": [[(0.1, 1), (0.1, 0), (0.9, 1), (0.9, 0)]],
    "P": [[(0.1, 1), (0.1, 0), *arc(0.4, 0.27, 0.4, 0.27, -90, 90), (0.1, 0.54)]],
    "R": [[(0.1, 1), (0.1, 0), *arc(0.4, 0.27, 0.4, 0.27, -90, 90), (0.1, 0.54), (0.9, 1)]],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1)]],
    "V": [[(0, 0), (0.5, 1), (1, 0)]],
    "W": [[(0, 0), (0.25, 1), (0.5, 0.2), (0.75, 1), (1, 0)]],
    "X": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
    "d": [[*arc(0.4, 0.7, 0.35, 0.3, -20, -340)], [(0.78, 0), (0.78, 1)]],
    "h": [[(0.1, 0), (0.1, 1)], [(0.1, 0.65), *arc(0.45, 0.65, 0.35, 0.25, 200, 360), (0.8, 1)]],
    "k": [[(0.1, 0), (0.1, 1)], [(0.75, 0.4), (0.1, 0.7), (0.8, 1)]],
    "m": [
        [(0, 0.3), (0, 1)],
        [(0, 0.6), *arc(0.25, 0.55, 0.25, 0.25, 180, 360), (0.5, 1)],
        [(0.5, 0.6), *arc(0.75, 0.55, 0.25, 0.25, 180, 360), (1, 1)],
    ],
    "n": [[(0.1, 0.2), (0.1, 1)], [(0.1, 0.6), *arc(0.5, 0.55, 0.4, 0.35, 180, 360), (0.9, 1)]],
    "w": [[(0, 0.3), (0.2, 1), (0.5, 0.45), (0.8, 1), (1, 0.3)]],
}
SIGNS: dict[str, list[Path]] = {
    "cross": [[(0.5, 0), (0.5, 1)], [(0, 0.5), (1, 0.5)]],
    "hash": [[(0.3, 0), (0.3, 1)], [(0.7, 0), (0.7, 1)], [(0, 0.3), (1, 0.3)], [(0, 0.7), (1, 0.7)]],
    "tick": [[(0, 0.6), (0.35, 1), (1, 0)]],
    "arrow": [[(0, 0.5), (1, 0.5)], [(0.65, 0.15), (1, 0.5), (0.65, 0.85)]],
    "crossed square": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)], [(0, 0), (1, 1)], [(1, 0), (0, 1)]],
    "triangle": [[(0.5, 0), (1, 1), (0, 1), (0.5, 0)]],
    "equals": [[(0, 0.2), (1, 0.2)], [(0, 0.8), (1, 0.8)]],
    "dash": [[(0, 0.5), (1, 0.5)]],
    "question mark": [[*arc(0.5, 0.27, 0.35, 0.27, -180, 60), (0.5, 0.75)], [(0.5, 0.97), (0.5, 1)]],
    "percent": [[(1, 0), (0, 1)], arc(0.2, 0.2, 0.2, 0.2, 0, 360), arc(0.8, 0.8, 0.2, 0.2, 0, 360)],
    "heart": [[*arc(0.25, 0.25, 0.25, 0.25, -200, 0), *arc(0.75, 0.25, 0.25, 0.25, -180, 20), (0.5, 1), (0.02, 0.35)]],
}


def draw(count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return (count, 28, 28) uint8 images of no digit, ink bright on dark, prepared as MNIST's are."""
    return np.stack([KINDS[rng.integers(len(KINDS))](rng) for _ in range(count)])


def touching(digits: npt.NDArray[np.uint8], count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return (count, 28, 28) uint8 images of a digit and all or part of one that it touches, prepared as one digit.

    Args:
        digits: (n, 28, 28) uint8, to choose from.
        count: How many to make.
        rng: The only source of chance.
    """
    return np.stack([_joined(digits[rng.integers(len(digits), size=2)], rng) for _ in range(count)])


def _joined(pair: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    left, right = (_cropped(digit, rng) for digit in pair)
    share = rng.uniform(0.4, 1)
    if rng.random() < 0.5:
        left = left[:, round((1 - share) * left.shape[1]) :]
    else:
        right = right[:, : max(1, round(share * right.shape[1]))]
    canvas = np.zeros((64, 128), np.uint8)
    canvas[: len(left), : left.shape[1]] = left
    for x in range(left.shape[1], -1, -1):
        place = canvas[: len(right), x : x + right.shape[1]]
        if (np.minimum(place, right) > 127).any():
            break
    np.maximum(place, right, out=place)
    return fit(canvas)


def _cropped(digit: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a digit a little larger or smaller, from somewhere below the top on, without margins at its sides."""
    size = int(rng.integers(44, 60))
    large = cv2.resize(digit, (size, size), interpolation=cv2.INTER_CUBIC)
    columns = np.flatnonzero(large.max(axis=0) > 50)
    return np.asarray(np.pad(large[:, columns[0] : columns[-1] + 1], ((int(rng.integers(5)), 0), (0, 0))), np.uint8)


def _one_of(shapes: dict[str, list[Path]], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    paths = list(shapes.values())
    return ink([(path, False) for path in paths[rng.integers(len(paths))]], rng)


def _asterisk(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    lines, turn = int(rng.integers(3, 6)), rng.uniform(0, np.pi)
    angles = turn + np.pi * np.arange(lines) / lines
    ends = [(0.5 * np.cos(angle), 0.5 * np.sin(angle)) for angle in angles]
    return ink([([(0.5 - x, 0.5 - y), (0.5 + x, 0.5 + y)], False) for x, y in ends], rng)


def _scribble(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw a line of many turns that goes anywhere."""
    return ink(_anywhere(int(rng.integers(6, 16)), rng), rng)


def _several_lines(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    return ink([line for _ in range(int(rng.integers(3, 6))) for line in _anywhere(int(rng.integers(2, 4)), rng)], rng)


def _anywhere(corners: int, rng: np.random.Generator) -> list[Stroke]:
    return [([(float(x), float(y)) for x, y in rng.uniform(0, 1, (corners, 2))], bool(rng.random() < 0.7))]


def _zigzag(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw a line to and fro, downwards or to the right."""
    along = np.linspace(0, 1, int(rng.integers(5, 12)))
    across = np.where(np.arange(len(along)) % 2, rng.uniform(0, 0.4), rng.uniform(0.6, 1)) + rng.normal(
        0, 0.06, len(along)
    )
    points = list(zip(along, across, strict=True) if rng.random() < 0.5 else zip(across, along, strict=True))
    return ink([(points, bool(rng.random() < 0.5))], rng)


def _coil(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw a spiral, or loops side by side."""
    turns = rng.uniform(2, 5)
    angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi * turns, 20 * round(turns))
    share = np.linspace(0, 1, len(angles))
    radius = 0.5 * share if rng.random() < 0.5 else np.full(len(angles), rng.uniform(0.2, 0.4))
    middle = np.where(radius[0] < 0.1, 0.5, share)
    return ink([(list(zip(middle + radius * np.cos(angles), 0.5 + radius * np.sin(angles), strict=True)), False)], rng)


KINDS: list[Callable[[np.random.Generator], npt.NDArray[np.uint8]]] = [
    partial(_one_of, LETTERS),
    partial(_one_of, LETTERS),
    partial(_one_of, SIGNS),
    _asterisk,
    _scribble,
    _several_lines,
    _zigzag,
    _coil,
]
