"""Digits as people write them where MNIST's writers did not: drawn by code, from pen paths with chance in every part.

MNIST's American writers of 1990 put no flag or base to a 1 and no bar to a 7. What they lack is drawn here: each digit
in the ways that schools of other countries teach it, with pens from thin to thick. Images go through MNIST's own
preprocessing (LeCun et al. 1998): fitted into 20 x 20, centred by mass in 28 x 28.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SIDE, BOX, FINE = 28, 20, 112  # pixels of the image, of the ink within, of the canvas that is drawn on
PEN = (0.04, 0.2)
"""Width of the pen, over the height of the digit."""
SMOOTHING = 3  # rounds of corner cutting (Chaikin 1974)

Path = list[tuple[float, float]]  # (x, y) in the unit square, y downwards
Stroke = tuple[Path, bool]  # of a pen, and whether it is round (its corners are cut) or straight


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> Path:
    """Return part of an ellipse, from angle to angle in degrees: 0 is right, 90 is down."""
    angles = np.deg2rad(np.linspace(start, end, 13))
    return [(cx + rx * np.cos(a), cy + ry * np.sin(a)) for a in angles]


_RING = arc(0.5, 0.5, 0.32, 0.5, -80, 285)
_LOOP = arc(0.5, 0.27, 0.28, 0.27, -20, -385)  # of a nine, begun at its right
_CUP = arc(0.45, 0.68, 0.33, 0.32, -80, 150)  # the belly of a five
_THREE = [*arc(0.45, 0.25, 0.28, 0.25, -160, 85), *arc(0.45, 0.74, 0.33, 0.26, -85, 160)]
_EIGHT = [
    *arc(0.5, 0.25, 0.27, 0.25, -60, -270),
    *arc(0.5, 0.75, 0.32, 0.25, -90, 270),
    *arc(0.5, 0.25, 0.27, 0.25, 90, -60),
]
_TWO = [*arc(0.48, 0.28, 0.3, 0.28, -165, 35), (0.1, 1.0)]
_SIX = [(0.68, 0.0), (0.36, 0.28), (0.2, 0.66), *arc(0.5, 0.71, 0.3, 0.29, 180, -180)]

# Ways to write each digit.
STYLES: dict[int, list[list[Stroke]]] = {
    0: [
        [(_RING, True)],
        [(arc(0.5, 0.5, 0.4, 0.5, -70, 300), True)],
        [(_RING, True), ([(0.8, 0.06), (0.2, 0.94)], False)],  # slashed
        [(arc(0.5, 0.5, 0.33, 0.5, -50, 250), True)],  # left open
    ],
    1: [
        [([(0.5, 0.0), (0.5, 1.0)], False)],
        [([(0.2, 0.32), (0.55, 0.0), (0.55, 1.0)], False)],  # with a flag
        [([(0.3, 0.2), (0.55, 0.0), (0.55, 1.0)], False)],
        [([(0.05, 0.5), (0.6, 0.0), (0.6, 1.0)], False)],  # with a flag of half its height
        [([(0.25, 0.25), (0.52, 0.0), (0.52, 1.0)], False), ([(0.2, 1.0), (0.84, 1.0)], False)],  # flag and base
        [([(0.5, 0.0), (0.5, 1.0)], False), ([(0.25, 1.0), (0.75, 1.0)], False)],
    ],
    2: [
        [(_TWO, True), ([(0.1, 1.0), (0.86, 1.0)], False)],
        [([*_TWO[:-1], (0.2, 0.95), (0.08, 0.9), (0.2, 0.8), (0.5, 0.98), (0.9, 0.93)], True)],  # looped
        [([(0.15, 0.05), (0.8, 0.05), (0.12, 0.98), (0.86, 0.98)], False)],  # like a Z
        [([*arc(0.48, 0.28, 0.3, 0.28, -165, 35), (0.12, 0.92), (0.3, 0.86), (0.6, 1.0), (0.9, 0.9)], True)],
    ],
    3: [
        [(_THREE, True)],
        [([(0.15, 0.02), (0.78, 0.02), (0.42, 0.4)], False), (arc(0.42, 0.7, 0.36, 0.3, -90, 155), True)],  # flat top
        [([*arc(0.42, 0.25, 0.3, 0.25, -150, 60), (0.35, 0.48), *arc(0.42, 0.74, 0.34, 0.26, -70, 140)], True)],
    ],
    4: [
        [([(0.62, 0.0), (0.05, 0.66), (0.95, 0.66)], False), ([(0.66, 0.3), (0.66, 1.0)], False)],  # open at the right
        [([(0.68, 1.0), (0.68, 0.0), (0.06, 0.68), (0.95, 0.68)], False)],  # closed
        [([(0.22, 0.0), (0.16, 0.5), (0.85, 0.5)], False), ([(0.74, 0.05), (0.7, 1.0)], False)],  # open at the top
        [([(0.22, 0.0), (0.14, 0.45), (0.4, 0.58), (0.72, 0.45)], True), ([(0.76, 0.0), (0.7, 1.0)], False)],
        [([(0.55, 0.0), (0.05, 0.62), (0.9, 0.62)], False), ([(0.6, 0.4), (0.6, 0.9), (0.7, 1.0), (0.85, 0.94)], True)],
        [([(0.66, 0.95), (0.68, 0.0), (0.06, 0.66), (0.95, 0.66)], False), ([(0.5, 1.0), (0.84, 1.0)], False)],  # base
    ],
    5: [
        [([(0.22, 0.02), (0.18, 0.44)], False), ([(0.18, 0.44), *_CUP], True), ([(0.22, 0.02), (0.82, 0.02)], False)],
        [([(0.85, 0.0), (0.25, 0.04), (0.2, 0.42)], False), ([(0.2, 0.42), *_CUP], True)],
        [
            ([(0.82, 0.04), (0.3, 0.02), (0.2, 0.4), (0.6, 0.46), (0.8, 0.7), (0.55, 1.0), (0.12, 0.9)], True)
        ],  # like an S
    ],
    6: [
        [(_SIX, True)],
        [([(0.3, 0.0), (0.22, 0.7), *arc(0.5, 0.73, 0.28, 0.27, 180, -170)], True)],  # straight back
        [([(0.8, 0.1), (0.55, 0.02), (0.25, 0.3), (0.18, 0.7), *arc(0.5, 0.72, 0.31, 0.28, 180, -150)], True)],
    ],
    7: [
        [([(0.1, 0.04), (0.85, 0.04), (0.4, 1.0)], False)],
        [([(0.1, 0.04), (0.85, 0.04), (0.4, 1.0)], False), ([(0.28, 0.5), (0.86, 0.5)], False)],  # with a bar
        [([(0.12, 0.2), (0.12, 0.03), (0.85, 0.03), (0.42, 1.0)], False), ([(0.3, 0.52), (0.84, 0.48)], False)],
        [([(0.1, 0.1), (0.4, 0.02), (0.85, 0.06), (0.5, 0.5), (0.42, 1.0)], True)],
        [([(0.12, 0.22), (0.14, 0.03), (0.85, 0.03), (0.5, 1.0)], False)],  # with a serif
    ],
    8: [
        [(_EIGHT, True)],
        [
            (
                [
                    (0.75, 0.1),
                    (0.5, 0.0),
                    (0.22, 0.2),
                    (0.75, 0.75),
                    (0.5, 1.0),
                    (0.22, 0.76),
                    (0.78, 0.22),
                    (0.7, 0.06),
                ],
                True,
            )
        ],
        [(arc(0.5, 0.25, 0.27, 0.25, -90, 270), True), (arc(0.5, 0.74, 0.33, 0.26, -90, 270), True)],
    ],
    9: [
        [([*_LOOP, (0.76, 0.6), (0.7, 1.0)], True)],
        [([*_LOOP, (0.78, 0.65), (0.62, 0.95), (0.3, 1.0), (0.14, 0.86)], True)],  # with a curled tail
        [(_LOOP, True), ([(0.78, 0.05), (0.78, 1.0)], False)],
        [([*_LOOP, (0.78, 0.5), (0.45, 1.0)], True)],
    ],
}


def draw(count: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return drawn digits and what they are.

    Args:
        count: How many.
        rng: Source of all randomness.

    Returns:
        (count, 28, 28) uint8, ink bright on dark, prepared as MNIST's are; (count,) labels.
    """
    labels = rng.integers(0, 10, count)
    styles = [STYLES[label] for label in labels.tolist()]
    return np.stack([ink(ways[rng.integers(len(ways))], rng) for ways in styles]), labels


def ink(strokes: list[Stroke], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the (28, 28) image of a pen's strokes; its width, slant, turn and wobble are random."""
    canvas = np.zeros((2 * FINE, 2 * FINE), np.uint8)
    matrix = _slant(rng)
    pen = rng.uniform(*PEN) * FINE
    wobble = rng.uniform(0, 0.04)
    for path, is_round in strokes:
        points = np.array(path)
        points = points + rng.normal(0, wobble / (2 if len(points) > 8 else 1), points.shape)
        for _ in range(SMOOTHING if is_round else int(rng.integers(0, 2))):
            points = _cut_corners(points)
        line = (points - 0.5) @ matrix.T * FINE + FINE
        sixteenths = np.round(line * 16).astype(np.int32)
        cv2.polylines(
            canvas,
            [sixteenths],
            isClosed=False,
            color=255,
            thickness=max(1, round(pen)),
            lineType=cv2.LINE_AA,
            shift=4,
        )
    return fit(canvas)


def _slant(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a random map of the unit square: turned, slanted, wide or narrow."""
    angle, shear = np.deg2rad(rng.normal(0, 6)), rng.normal(0.08, 0.16)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.array([[1, -shear], [0, 1]]) @ np.diag([rng.uniform(0.5, 0.95), 1.0])


def _cut_corners(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    first, second = points[:-1], points[1:]
    between = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], 1).reshape(-1, 2)
    return np.concatenate([points[:1], between, points[-1:]])


def fit(canvas: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the ink of a canvas as MNIST's: its longer side 20 pixels, its centre of mass the image's centre.

    Args:
        canvas: (height, width) uint8, 0 background ... 255 ink, not empty.
    """
    x, y, width, height = cv2.boundingRect(canvas)
    scale = BOX / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ink = cv2.resize(canvas[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA)
    mass = cv2.moments(ink)
    shift = SIDE / 2 - 0.5 - np.array([mass["m10"], mass["m01"]]) / mass["m00"]
    moved = cv2.warpAffine(ink, np.array([[1, 0, round(shift[0])], [0, 1, round(shift[1])]], float), (SIDE, SIDE))
    return np.asarray(moved, np.uint8)
