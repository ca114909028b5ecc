"""What of a picture is ink: paper, light, ruled lines and specks are taken away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from digits_client._pictures.decode import Grey

Ink = npt.NDArray[np.uint8]
"""(height, width), 0 on paper to 255 where no light comes back."""
Mask = npt.NDArray[np.uint8]
"""(height, width), 1 where there is ink."""
COARSE = 160  # pixels of the longer side at which the paper is estimated
STRONG = 0.45  # of the darkest: printed lines and shadows are fainter than ink
OWN = 0.4  # of the darkest of a part's ink: what is fainter is not its own
FAINT = 0.5  # of the level above which all is ink: what is less faint is ink where it hangs together with such
SAME = 0.2  # how far levels may be apart to find the same
LINE = 0.02  # of the shorter side: the width of ruled lines
FEW = 4 * (2**16 - 1024)  # pixels whose parts can be told apart in 16 bits, which takes a third of the time
MOST_PARTS = 200  # that are looked at: the rest are specks
THICKEST = 0.3  # of the longer side: dark squares of this size are no strokes, but shadows or a table


@dataclass(frozen=True)
class Part:
    """A connected part of the ink."""

    label: int
    x: int
    y: int
    width: int
    height: int
    mass: float
    """Sum of the ink."""
    is_cut: bool
    """Whether it touches the picture's border."""

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height


def ink_of(grey: Grey) -> Ink:
    """Return how much darker (or brighter, on dark paper) than the paper around it each pixel is."""
    height, width = grey.shape
    shrink = min(1.0, COARSE / max(grey.shape))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    coarse = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    if not _is_dark_on_bright(coarse):
        grey, coarse = 255 - grey, 255 - coarse
    side = max(3, round(THICKEST * max(size)))
    # What is dark and narrow is filled with the paper around it; the edges of what is wide stay where they are.
    paper = cv2.morphologyEx(coarse, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
    paper = cv2.resize(np.maximum(paper, 1), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(255 - cv2.divide(grey, paper, scale=255), np.uint8)


def _is_dark_on_bright(coarse: Grey) -> bool:
    """Whether the ink, the lesser part of the picture, is the darker one: by ratios, as light works."""
    levels = np.log(cv2.GaussianBlur(coarse, (3, 3), 0)[::2, ::2].astype(np.float32) + 16)
    middle = np.median(levels)
    return bool(middle - levels.min() >= levels.max() - middle)


class Found(NamedTuple):
    """The connected parts of a picture's ink. Ruled lines and frames are not among them."""

    parts: list[Part]
    """The heaviest first."""
    labels: npt.NDArray[np.integer]
    """(height, width), the part that a pixel belongs to."""
    level: float
    """What is nowhere darker is no ink."""
    noise: float
    """What is fainter may be the paper's noise."""


def parts_of(ink: Ink) -> Found:
    """Return the parts that are above the noise, and not faint beside the darkest ink."""
    some = ink[::4, ::4]
    middle = float(np.median(some))
    deviation = 1.5 * float(np.median(np.abs(some - middle)))
    noise = max(middle + 4 * deviation, 15.0)
    return _parts_above(ink, max(STRONG * float(cv2.blur(ink, (3, 3)).max()), noise), noise)


def refined(ink: Ink, found: Found, part: Part) -> Found:
    """Return what is found at the level that a part's own ink sets: faint lines and shadows that cling to it go."""
    level = OWN * float(np.percentile(ink[found.labels == part.label], 90))
    again = found if abs(level / found.level - 1) <= SAME else _parts_above(ink, level, found.noise)
    return again if again.parts else found


def _parts_above(ink: Ink, level: float, noise: float) -> Found:
    mask = _with_hairlines(ink, _without_lines((ink > level).astype(np.uint8)), max(FAINT * level, noise))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=_labels_type(mask))
    inked = np.flatnonzero(mask.view(np.bool_))
    masses = np.bincount(labels.ravel()[inked], ink.ravel()[inked], count)
    height, width = ink.shape
    parts = [
        Part(label, x, y, w, h, float(masses[label]), x == 0 or y == 0 or x + w == width or y + h == height)
        for label, (x, y, w, h, _) in enumerate(boxes.tolist())
        if label and w * h > 2
    ]
    parts.sort(key=lambda part: -part.mass)
    return Found(_without_frames(parts[:MOST_PARTS]), np.asarray(labels), level, noise)


def _with_hairlines(ink: Ink, mask: Mask, level: float) -> Mask:
    """Return the mask with the fainter ink that hangs together with its own.

    But for what runs off the picture, or gets wider than a digit is: that is a printed line or the edge of a shadow.
    """
    faint = _without_lines((ink > level).astype(np.uint8))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(faint, connectivity=8, ltype=_labels_type(faint))
    is_own = np.zeros(count, np.uint8)
    is_own[labels[mask > 0]] = 1
    is_own[boxes[:, cv2.CC_STAT_WIDTH] > boxes[:, cv2.CC_STAT_HEIGHT]] = 0
    for outside in (0, labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_own[outside] = 0
    return np.asarray(mask | is_own[labels], np.uint8)


def _labels_type(mask: Mask) -> int:
    return cv2.CV_16U if mask.size < FEW else cv2.CV_32S


def _without_lines(mask: Mask) -> Mask:
    """Return the mask without thin lines across the whole picture; strokes that they cross stay."""
    thick = max(3, round(LINE * min(mask.shape)))
    for across in (False, True):
        turned: Mask = np.ascontiguousarray(mask.T) if across else mask
        width = turned.shape[1]
        thin = turned & (1 - _opened(turned, thick + 1, 1))
        if cv2.countNonZero(thin) < width / 2:
            continue
        runs = thin & _opened(turned, 1, max(15, width // 8))
        if cv2.countNonZero(runs) < width / 2:
            continue
        joined = cv2.dilate(runs, np.ones((3, width // 3), np.uint8))  # over strokes, and the steps of a tilted line
        _, labels, boxes, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
        lines = [label for label, (_, _, length, _, _) in enumerate(boxes.tolist()) if label and length >= 0.9 * width]
        if lines:
            line = (np.isin(labels, lines) & (runs > 0)).astype(np.uint8)
            turned = turned & (1 - np.asarray(cv2.dilate(line, np.ones((3, 1), np.uint8)), np.uint8) * thin)
            mask = np.ascontiguousarray(turned.T) if across else turned
    return mask


def _opened(mask: Mask, height: int, width: int) -> Mask:
    """Return those pixels that lie in a filled rectangle of this size."""
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((height, width), np.uint8)), np.uint8)


def _without_frames(parts: list[Part]) -> list[Part]:
    """Return the parts without those around another of a digit's size."""
    return [part for part in parts if not any(_surrounds(part, other) for other in parts)]


def _surrounds(frame: Part, other: Part) -> bool:
    return (
        frame.x < other.x
        and frame.y < other.y
        and frame.right > other.right
        and frame.bottom > other.bottom
        and other.height >= 0.3 * frame.height
        and other.mass >= 0.05 * frame.mass
    )
