"""What cameras, pens and paper do to digits: blur, noise, faint ink, thick and thin pens, lines across, small sizes.

The kinds follow those of MNIST-C (Mu and Gilmer 2019, "MNIST-C: A Robustness Benchmark for Computer Vision"), with
ranges of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SIDE = 28
Image = npt.NDArray[Any]  # (28, 28) uint8, 0 background ... 255 ink


def damage(images: npt.NDArray[np.uint8], share: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the images, a random share of them damaged, each in one way.

    Args:
        images: (n, 28, 28) uint8.
        share: How many of them, 0 to 1.
        rng: Source of all randomness.
    """
    damaged, kinds = images.copy(), list(KINDS.values())
    for index in np.flatnonzero(rng.random(len(images)) < share):
        damaged[index] = kinds[rng.integers(len(kinds))](images[index], rng)
    return damaged


def _thick(image: Image, rng: np.random.Generator) -> Image:
    return _pen(image, cv2.dilate, rng)


def _thin(image: Image, rng: np.random.Generator) -> Image:
    thinned = _pen(image, cv2.erode, rng)
    return thinned if thinned.max() > 100 else image  # a hairline would vanish


def _pen(image: Image, change: Callable[[Image, Image], Any], rng: np.random.Generator) -> Image:
    """Change the strokes' width by up to two pixels, at four times the size so that edges stay soft."""
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (int(rng.integers(2, 8)),) * 2)
    return np.asarray(cv2.resize(change(large, kernel), (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def _blur(image: Image, rng: np.random.Generator) -> Image:
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 1.8))


def _motion(image: Image, rng: np.random.Generator) -> Image:
    length = int(rng.integers(3, 9))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    middle = (length - 1) / 2
    along = middle * np.array([np.cos(angle), np.sin(angle)])
    start, end = np.round(middle - along).astype(int).tolist(), np.round(middle + along).astype(int).tolist()
    cv2.line(kernel, start, end, 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def _glass(image: Image, rng: np.random.Generator) -> Image:
    moved = np.indices((SIDE, SIDE), np.float32) + rng.uniform(-1.5, 1.5, (2, SIDE, SIDE)).astype(np.float32)
    return cv2.GaussianBlur(cv2.remap(image, moved[1], moved[0], cv2.INTER_NEAREST), (0, 0), rng.uniform(0.4, 0.9))


def _faint(image: Image, rng: np.random.Generator) -> Image:
    return np.round(image * rng.uniform(0.2, 0.8)).astype(np.uint8)


def _noise(image: Image, rng: np.random.Generator) -> Image:
    if rng.random() < 0.5:  # shot noise
        photons = rng.uniform(5, 60)
        noisy = rng.poisson(image / 255 * photons) / photons * 255
    else:
        noisy = image + rng.normal(0, rng.uniform(10, 60), image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _impulses(image: Image, rng: np.random.Generator) -> Image:
    which, share = rng.random(image.shape), rng.uniform(0.02, 0.15)
    return np.where(which < share / 2, 0, np.where(which > 1 - share / 2, 255, image)).astype(np.uint8)


def _ruled(image: Image, rng: np.random.Generator) -> Image:
    drawn = image.copy()
    rows = slice(int(rng.integers(0, 5)), None, int(rng.integers(5, 10)))
    drawn[rows] = np.maximum(drawn[rows], int(rng.integers(100, 256)))
    return drawn


def _line(image: Image, rng: np.random.Generator) -> Image:
    """Draw a line from side to side, whole or dotted."""
    line = _crossing(2, rng)
    if rng.random() < 0.5:
        line[np.indices((SIDE, SIDE)).sum(0) % int(rng.integers(3, 6)) == 0] = 0
    return np.maximum(image, line)


def _zigzag(image: Image, rng: np.random.Generator) -> Image:
    return np.maximum(image, _crossing(int(rng.integers(4, 8)), rng))


def _crossing(corners: int, rng: np.random.Generator) -> Image:
    """Return a line of so many corners from left to right or from top to bottom."""
    along, across = np.linspace(-1, SIDE, corners), rng.uniform(4, 24, corners)
    points = np.round(np.stack([along, across] if rng.random() < 0.6 else [across, along], 1)).astype(np.int32)
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    cv2.polylines(
        canvas, [points], isClosed=False, color=int(rng.integers(100, 256)), thickness=1, lineType=cv2.LINE_AA
    )
    return canvas


def _spatter(image: Image, rng: np.random.Generator) -> Image:
    drawn = image.copy()
    for _ in range(int(rng.integers(2, 9))):
        cv2.circle(drawn, rng.integers(0, SIDE, 2).tolist(), int(rng.integers(0, 3)), int(rng.integers(80, 256)), -1)
    return drawn


def _small(image: Image, rng: np.random.Generator) -> Image:
    scale, angle = rng.uniform(0.55, 0.9), rng.uniform(-25, 25)
    return _about_the_centre(image, angle, scale)


def _turned(image: Image, rng: np.random.Generator) -> Image:
    return _about_the_centre(image, rng.uniform(-32, 32), 1)


def _about_the_centre(image: Image, degrees: float, scale: float) -> Image:
    centre = (SIDE - 1) / 2
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((centre, centre), degrees, scale), (SIDE, SIDE))


def _hidden(image: Image, rng: np.random.Generator) -> Image:
    drawn = image.copy()
    height, width = rng.integers(2, 7, 2)
    top, left = rng.integers(4, 22, 2)
    drawn[top : top + height, left : left + width] = 0
    return drawn


def _outline(image: Image, _rng: np.random.Generator) -> Image:
    return cv2.Canny(image, 50, 150)


KINDS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "thick pen": _thick,
    "thin pen": _thin,
    "blur": _blur,
    "motion blur": _motion,
    "glass blur": _glass,
    "faint ink": _faint,
    "noise": _noise,
    "impulses": _impulses,
    "ruled paper": _ruled,
    "line across": _line,
    "zigzag across": _zigzag,
    "spatter": _spatter,
    "small, turned": _small,
    "turned": _turned,
    "partly hidden": _hidden,
    "outline": _outline,
}
