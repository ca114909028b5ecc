"""Random affine and elastic deformation of digit images: teaches networks that slant, size and wobble don't matter.

Nothing here knows of training, labels or files. Affine ranges and the elastic field follow Simard, Steinkraus and
Platt (2003), "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

SIDE = 28
PADDED = SIDE + 2  # an empty row above and below each image of a strip, so that neighbours never bleed into each other
STRIP = 1000  # images per remap call: OpenCV addresses at most 32,767 rows

Images = npt.NDArray[np.uint8]  # (n, 28, 28), 0 background ... 255 ink
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Deformation:
    """Ranges from which each image's own deformation is drawn, uniformly unless said otherwise."""

    rotation_deg: float = 0.0
    """Turned by up to this many degrees either way."""
    scale: float = 0.0
    """Each axis stretched by a factor in [1 / (1 + scale), 1 + scale], uniform in its logarithm."""
    shear: float = 0.0
    """Slanted by up to this many columns a row, either way."""
    shift_px: float = 0.0
    """Moved by up to this many pixels on each axis."""
    elastic_px: float = 0.0
    """Root mean square of the local displacement on each axis, in pixels (normally distributed)."""
    elastic_sigma_px: float = 5.0
    """Smoothness of that displacement: the standard deviation of its Gaussian kernel, in pixels."""

    @property
    def is_active(self) -> bool:
        """Whether anything would move at all."""
        return any((self.rotation_deg, self.scale, self.shear, self.shift_px, self.elastic_px))


def deform(images: Images, settings: Deformation, rng: np.random.Generator) -> Images:
    """Return a freshly deformed copy of every image.

    Args:
        images: (n, 28, 28) uint8.
        settings: The ranges to draw from.
        rng: Source of all randomness; equal generators give equal images.
    """
    parts = [_deform_strip(images[start : start + STRIP], settings, rng) for start in range(0, len(images), STRIP)]
    return np.concatenate(parts) if parts else images.copy()


def _deform_strip(images: Images, settings: Deformation, rng: np.random.Generator) -> Images:
    field = None
    matrix, offset = _draw_affine(len(images), settings, rng)
    if settings.elastic_px:
        basis = _smooth_basis(settings.elastic_sigma_px)  # (28, k)
        noise = rng.standard_normal((2, len(images), basis.shape[1], basis.shape[1]), dtype=np.float32)
        field = (settings.elastic_px * (basis @ noise @ basis.T)).astype(np.float32)  # (2, n, 28, 28)
    return warp(images, matrix, offset, field)


def warp(images: Images, matrix: Floats, offset: Floats, field: Floats | None = None) -> Images:
    """Return up to a thousand images resampled, bilinearly, at other places.

    Args:
        images: (n, 28, 28) uint8.
        matrix: (n, 2, 2), takes a target pixel's (row, column) from the centre to its source's.
        offset: (n, 2), added to that, in pixels.
        field: (2, n, 28, 28), added to that pixel by pixel.
    """
    count, centre = len(images), (SIDE - 1) / 2
    axis = np.arange(SIDE, dtype=np.float32) - centre
    rows = (matrix[:, 0, 0, None] * axis + offset[:, 0, None])[:, :, None] + (matrix[:, 0, 1, None] * axis)[:, None, :]
    columns = (matrix[:, 1, 0, None] * axis + offset[:, 1, None])[:, :, None] + (matrix[:, 1, 1, None] * axis)[:, None]
    if field is not None:
        rows += field[0]
        columns += field[1]
    rows = np.clip(rows + centre, -1, SIDE) + (PADDED * np.arange(count, dtype=np.float32) + 1)[:, None, None]
    strip = np.zeros((count, PADDED, SIDE), np.uint8)
    strip[:, 1:-1] = images
    moved = cv2.remap(
        strip.reshape(-1, SIDE),
        (columns + centre).reshape(-1, SIDE),
        rows.reshape(-1, SIDE),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )
    return np.asarray(moved, np.uint8).reshape(images.shape)


def _draw_affine(count: int, settings: Deformation, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw maps from target to source coordinates, both around the centre: (n, 2, 2) matrices and (n, 2) offsets."""
    uniform = rng.uniform(-1, 1, (6, count)).astype(np.float32)
    angle = np.deg2rad(settings.rotation_deg) * uniform[0]
    stretch = (1 + settings.scale) ** uniform[1:3]
    slant = settings.shear * uniform[3]
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.empty((count, 2, 2), np.float32)
    matrix[:, 0, 0] = cos * stretch[0]
    matrix[:, 0, 1] = -sin * stretch[0]
    matrix[:, 1, 0] = (sin + slant * cos) * stretch[1]
    matrix[:, 1, 1] = (cos - slant * sin) * stretch[1]
    return matrix, (settings.shift_px * uniform[4:]).T


@lru_cache(maxsize=8)
def _smooth_basis(sigma_px: float) -> Floats:
    """Return the (28, k) matrix that, applied on both axes, turns k x k white noise to a smooth field of unit variance.

    White noise on a grid finer than sigma, smoothed, can't be told from noise on every pixel, smoothed, and needs
    a tenth of the random numbers. Rows are scaled to unit length, so that the border moves as much as the middle.
    """
    centres = np.arange(-2 * sigma_px, SIDE + 2 * sigma_px, 0.8 * sigma_px)
    basis = np.exp(-((np.arange(SIDE)[:, None] - centres) ** 2) / (2 * sigma_px**2))
    return (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)
