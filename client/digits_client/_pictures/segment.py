"""A picture of a number, to its digits: all ways to divide its ink, of which a model's answers choose the likeliest.

Touching digits can't be told from one digit by their shape alone. So what may be several is cut at several places, and
every stretch between two cuts becomes a segment to classify; then the best path through them is the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from digits_client._errors import InvalidImage
from digits_client._pictures.clean import Ink, Mask, Part, ink_of, parts_of, refined
from digits_client._pictures.decode import decode
from digits_client._pictures.normalise import normalised
from digits_client._pictures.prepare import cut_out

ENOUGH = 1024  # pixels of a picture's longer side: a digit of 1/40 of it is as large as MNIST's
MOST_CUTS = 5
LIGHTEST = 0.1  # of a block's ink: less beside a cut is no digit
REACH = 0.2  # of the height: how far a cut may stray from the vertical
UNCERTAIN = 0.03  # how likely a segment is to be a digit that the model is not sure of
COARSE = 32  # pixels of a block's height at which cuts are sought
SINGLE, SEVERAL = 0.6, 0.9  # widths in heights: below the one a block is one digit, above the other rather several
Box = tuple[int, int, int, int]
"""x, y, width and height in pixels of the decoded picture."""


@dataclass(frozen=True)
class Segment:
    """Ink that may be a digit."""

    box: Box
    image: npt.NDArray[np.uint8]
    """(28, 28) as MNIST would have it."""
    is_touching: bool
    """Whether its ink was cut off that of a neighbour."""
    block: int
    """Ink that is connected, in reading order, of which this is the pieces from `start` to before `stop`."""
    start: int
    stop: int
    log_odds: float
    """How likely a cut of this block is right, from the block's proportions alone."""


@dataclass(frozen=True)
class Lattice:
    """All segments that a number may consist of."""

    segments: list[Segment]

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """(n, 28, 28) of all segments, to be classified."""
        return np.stack([segment.image for segment in self.segments])

    def best(self, digits: Sequence[int], confidences: Sequence[float], certain: Sequence[bool]) -> list[int]:
        """Return the indices of the segments that are the number, in reading order, by what a model says of each."""
        usual = self._usual_height()
        likelihood = [
            float(np.log(max(confidence, 1e-6) * (1 if sure else UNCERTAIN))) + _shape(segment, digit, usual)
            for segment, digit, confidence, sure in zip(self.segments, digits, confidences, certain, strict=True)
        ]
        chosen: list[int] = []
        for block in sorted({segment.block for segment in self.segments}):
            mine = [index for index, segment in enumerate(self.segments) if segment.block == block]
            paths: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
            for index in sorted(mine, key=lambda index: self.segments[index].stop):
                segment = self.segments[index]
                if segment.start in paths:
                    score, path = paths[segment.start]
                    score += likelihood[index] + (segment.log_odds if segment.start else 0)
                    if segment.stop not in paths or score > paths[segment.stop][0]:
                        paths[segment.stop] = score, [*path, index]
            chosen += paths[max(paths)][1]
        return chosen

    def _usual_height(self) -> float:
        """Return the median height of blocks, in pixels: cuts change a block's width, hardly its height."""
        widest = {segment.block: segment for segment in sorted(self.segments, key=lambda each: each.stop - each.start)}
        return float(np.median([segment.box[3] for segment in widest.values()]))


def _shape(segment: Segment, digit: int, usual: float) -> float:
    """Return the log-likelihood that a digit has a segment's proportions, where digits are `usual` pixels high.

    All but 1 are rarely narrow; none is much wider than high, or much lower than its neighbours. How much each weighs
    was chosen for most numbers right among those made of MNIST's training digits.
    """
    _, _, width, height = segment.box
    narrow = float(np.log(0.3)) if digit != 1 and width < 0.3 * height else 0.0
    return narrow - 3 * max(0.0, width / usual - 0.9) - 5 * max(0.0, 0.8 - height / usual)


def segment(picture: str | Path | bytes | Image.Image) -> Lattice:
    """Return the segments of a picture of a number, in reading order.

    Raises:
        InvalidImage: It can't be read as a picture, or shows nothing.
    """
    ink = ink_of(decode(picture, ENOUGH))
    found = parts_of(ink)
    if found.parts:
        found = refined(ink, found, found.parts[0])
    segments: list[Segment] = []
    for block, parts in enumerate(_blocks(found.parts)):
        segments += _cut(cut_out(ink, found.labels, parts), block, min(p.x for p in parts), min(p.y for p in parts))
    if not segments:
        raise InvalidImage("image: shows nothing to read")
    return Lattice(segments)


def _blocks(found: list[Part]) -> list[list[Part]]:
    """Return the parts of each stretch of connected ink, line by line, from left to right."""
    whole = [part for part in found if not part.is_cut]
    if sum(part.mass for part in whole) >= 0.3 * sum(part.mass for part in found):
        found = whole
    tall = [part for part in found if part.mass >= 0.15 * found[0].mass]
    if not tall:
        return []
    usual = float(np.median([part.height for part in tall]))
    blocks = [[part] for part in found if part.height >= 0.5 * usual]
    for part in found:
        if part.height < 0.5 * usual and part.mass >= 0.03 * found[0].mass:
            near = [block for block in blocks if _is_above(part, block[0], usual)]
            if near:
                min(near, key=lambda block: abs(part.x + part.right - block[0].x - block[0].right)).append(part)
    lines: list[list[list[Part]]] = []
    for block in sorted(blocks, key=lambda block: block[0].y + block[0].height / 2):
        middle = block[0].y + block[0].height / 2
        if lines and any(other[0].y < middle < other[0].bottom for other in lines[-1]):
            lines[-1].append(block)
        else:
            lines.append([block])
    return [block for line in lines for block in sorted(line, key=lambda block: block[0].x + block[0].right)]


def _is_above(part: Part, main: Part, usual: float) -> bool:
    """Whether a part is a stroke of its own of a digit, such as the flag of a 5."""
    shared = min(part.right, main.right) - max(part.x, main.x)
    apart = max(part.y - main.bottom, main.y - part.bottom)
    return shared > -0.15 * usual and apart < 0.3 * usual and part.height + part.width > 0.25 * usual


def _cut(ink: Ink, block: int, x: int, y: int) -> list[Segment]:
    """Return the segments of one block: the whole, and what is between any two of its cuts."""
    inked = (ink > 0.3 * float(ink.max())).astype(np.uint8)
    seams = _seams(inked)
    columns = np.arange(ink.shape[1])
    wide = cv2.boundingRect(inked)[2] / cv2.boundingRect(inked)[3]
    log_odds = float(np.interp(wide, (SINGLE, SEVERAL), (-5, -0.5)))
    edges = [np.zeros(len(ink), int), *seams, np.full(len(ink), ink.shape[1])]
    segments = []
    for start in range(len(edges) - 1):
        for stop in range(start + 1, len(edges)):
            between = (columns >= edges[start][:, None]) & (columns < edges[stop][:, None])
            mine = _largest((inked & between).astype(np.uint8))
            left, top, width, height = cv2.boundingRect(mine)
            inside = slice(top, top + height), slice(left, left + width)
            if not width or (len(seams) and max(width, height) < 0.4 * len(ink)):
                continue
            cut = ink[inside] * between[inside].astype(np.uint8)
            is_touching = stop - start < len(edges) - 1
            box = max(x + left - 2, 0), max(y + top - 2, 0), width, height
            segments.append(Segment(box, normalised(cut), is_touching, block, start, stop, log_odds))
    return segments


def _largest(mask: Mask) -> Mask:
    """Return the mask without scraps of a neighbour."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = boxes[1:, cv2.CC_STAT_AREA]
    kept = [label for label, area in enumerate(areas.tolist(), 1) if area >= 0.1 * areas.max()]
    return np.isin(labels, kept).astype(np.uint8)


def _seams(inked: Mask) -> list[npt.NDArray[np.int64]]:
    """Return where a block may be cut, from left to right: for each seam the column in each row."""
    full_height, full_width = inked.shape
    if full_width < SINGLE * full_height:
        return []
    scale = COARSE / full_height
    height, width = COARSE, max(2, round(full_width * scale))
    shrunk = cv2.resize(inked.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    coarse = np.asarray(shrunk, np.float32)
    reach = round(REACH * height)
    seams: list[tuple[float, npt.NDArray[np.int64]]] = []
    for middle in range(height // 6, width - height // 6, height // 8):
        left, right = max(1, middle - reach), min(width, middle + reach)
        cost, seam = _seam(coarse[:, left:right])
        seam += left
        share = float((coarse * (np.arange(width) < seam[:, None])).sum() / coarse.sum())
        is_between = LIGHTEST < share < 1 - LIGHTEST
        if (
            is_between
            and cost < 0.5 * height
            and not any(np.abs(seam - other).mean() < 0.06 * height for _, other in seams)
        ):
            seams.append((cost, seam))
    best = sorted(seams, key=lambda seam: seam[0])[:MOST_CUTS]
    rows = (np.arange(full_height) * scale).astype(int).clip(0, height - 1)
    return [np.rint(seam[rows] / scale).astype(int) for _, seam in sorted(best, key=lambda seam: float(seam[1].mean()))]


def _seam(inked: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.int64]]:
    """Return the path from top to bottom through the least ink, and how much that is, in pixels."""
    height, width = inked.shape
    sideways = np.array([0.05, 0.0, 0.05], np.float32)[:, None]  # straight is best where nothing else tells
    total = inked[0]
    came = np.zeros((height, width), np.int64)
    for row in range(1, height):
        padded = np.pad(total, 1, constant_values=np.inf)
        options = np.stack([padded[:-2], padded[1:-1], padded[2:]]) + sideways
        step = options.argmin(axis=0)
        came[row] = step - 1
        total = inked[row] + options[step, np.arange(width)]
    seam = np.empty(height, np.int64)
    seam[-1] = int(total.argmin())
    for row in range(height - 1, 0, -1):
        seam[row - 1] = seam[row] + came[row, seam[row]]
    return float(total.min()), seam
