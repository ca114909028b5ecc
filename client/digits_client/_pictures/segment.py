"""A picture of a number, to its digits: all ways to divide its ink, of which a model's answers choose the likeliest.

Touching digits can't be told from one digit by their shape alone. So what may be several is cut at several places, and
every stretch between two cuts becomes a segment to classify; then the best path through them is the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

import cv2
import numpy as np
import numpy.typing as npt

from digits_client._errors import InvalidImage
from digits_client._pictures.clean import Ink, Mask, Part, ink_of, parts_of, refined
from digits_client._pictures.decode import Picture, decode
from digits_client._pictures.normalise import normalised
from digits_client._pictures.prepare import cut_out

ENOUGH = 1024  # pixels of a picture's longer side: a digit of 1/40 of it is as large as MNIST's
MOST_CUTS = 12  # of a block
MOST = 4000  # segments of a picture: a page of a hundred digits; a server takes 4,096 images in a call
LIGHTEST = 0.1  # of a block's ink: less beside a cut is no digit
COARSE = 32  # pixels of a block's height at which cuts are sought
REACH = 3  # of these pixels: how far a cut may stray from the vertical
APART = 0.06  # heights between cuts that count as two
DEAREST = 0.5  # heights of ink that a cut may go through
NARROWEST = 0.6  # width of a block, in heights, that may be several digits
# Chosen for most numbers right among those made of MNIST's training digits:
WIDEST = 0.9  # width of a digit, in heights; what is wider is less likely one
CUT = -0.4  # log odds of a cut


@dataclass(frozen=True)
class Segment:
    """Ink that may be a digit."""

    box: tuple[int, int, int, int]
    """x, y, width and height in pixels of the decoded picture."""
    image: npt.NDArray[np.uint8]
    """(28, 28) as MNIST would have it."""
    is_touching: bool
    """Whether its ink was cut off that of a neighbour."""
    block: int
    """Ink that is connected, in reading order, of which this is the pieces from `start` to before `stop`."""
    start: int
    stop: int


def segment(picture: Picture) -> list[Segment]:
    """Return the segments of a picture of a number, in reading order.

    Raises:
        InvalidImage: It can't be read as a picture, or shows nothing, or too much.
    """
    ink = ink_of(decode(picture, ENOUGH))
    found = parts_of(ink)
    if found.parts:
        found = refined(ink, found, found.parts[0])
    segments: list[Segment] = []
    for block, parts in enumerate(_blocks(found.parts)):
        segments += _pieces(cut_out(ink, found.labels, parts), block, min(p.x for p in parts), min(p.y for p in parts))
        if len(segments) > MOST:
            raise InvalidImage(f"image: shows more than {MOST} shapes that may be digits; cut it to the numbers alone")
    if not segments:
        raise InvalidImage("image: shows nothing to read")
    return segments


def likeliest(segments: Sequence[Segment], confidences: Sequence[float]) -> list[int]:
    """Return the indices of the segments that are the number, in reading order.

    Args:
        segments: Those of a picture.
        confidences: A model's in its answer to each of them: high for a digit, low for part of one or for two.
    """
    widest = {segment.block: segment for segment in sorted(segments, key=lambda each: each.stop - each.start)}
    usual = float(np.median([segment.box[3] for segment in widest.values()]))  # cuts hardly change a block's height
    likelihood = [
        float(np.log(max(confidence, 1e-6))) - max(0.0, segment.box[2] / usual - WIDEST)
        for segment, confidence in zip(segments, confidences, strict=True)
    ]
    chosen: list[int] = []
    for _, block in groupby(range(len(segments)), key=lambda index: segments[index].block):
        paths: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
        for index in sorted(block, key=lambda index: segments[index].stop):
            segment = segments[index]
            if segment.start in paths:
                score, path = paths[segment.start]
                score += likelihood[index] + (CUT if segment.start else 0)
                if segment.stop not in paths or score > paths[segment.stop][0]:
                    paths[segment.stop] = score, [*path, index]
        chosen += paths[max(paths)][1]
    return chosen


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


def _pieces(ink: Ink, block: int, x: int, y: int) -> list[Segment]:
    """Return the segments of one block: the whole, and what is between any two of its cuts."""
    inked = (ink > 0.3 * float(ink.max())).astype(np.uint8)
    cuts = _cuts(inked)
    full_height, full_width = ink.shape
    columns = np.arange(full_width)
    edges = [np.zeros(full_height, int), *cuts, np.full(full_height, full_width)]
    segments = []
    for start, stop in combinations(range(len(edges)), 2):
        is_touching = stop - start < len(edges) - 1
        between = (columns >= edges[start][:, None]) & (columns < edges[stop][:, None])
        mine = _largest((inked & between).astype(np.uint8))
        left, top, width, height = cv2.boundingRect(mine)
        if not width or (cuts and max(width, height) < 0.4 * full_height):
            continue
        inside = slice(top, top + height), slice(left, left + width)
        cut = ink[inside] * between[inside].astype(np.uint8)
        box = max(x + left - 2, 0), max(y + top - 2, 0), width, height
        segments.append(Segment(box, normalised(cut), is_touching, block, start, stop))
    return segments


def _largest(mask: Mask) -> Mask:
    """Return the mask without scraps of a neighbour."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = boxes[1:, cv2.CC_STAT_AREA]
    kept = [label for label, area in enumerate(areas.tolist(), 1) if area >= 0.1 * areas.max()]
    return np.isin(labels, kept).astype(np.uint8)


def _cuts(inked: Mask) -> list[npt.NDArray[np.int64]]:
    """Return where a block may be cut, from left to right: for each cut the column in each row.

    Paths through little ink are sought in narrow strips; of paths near each other the cheapest stays.
    """
    full_height, full_width = inked.shape
    if full_width < NARROWEST * full_height:
        return []
    scale = COARSE / full_height
    width = max(2, round(full_width * scale))
    shrunk = cv2.resize(inked.astype(np.float32), (width, COARSE), interpolation=cv2.INTER_AREA)
    coarse = np.asarray(shrunk, np.float32)
    middles = np.arange(COARSE // 8, width - COARSE // 8, COARSE // 8)
    columns = middles[:, None] + np.arange(-REACH, REACH + 1)  # (strips, columns of a strip)
    inside = columns.clip(0, width - 1)
    strips = np.where(columns == inside, coarse[:, inside], 0).swapaxes(0, 1)
    costs, paths = _cheapest(strips)
    found = zip(costs.tolist(), np.take_along_axis(inside, paths, 1), strict=True)
    best: list[npt.NDArray[np.int64]] = []
    for cost, cut in sorted(found, key=lambda each: each[0]):
        share = float((coarse * (np.arange(width) < cut[:, None])).sum() / coarse.sum())
        is_new = all(np.abs(cut - other).mean() >= APART * COARSE for other in best)
        if is_new and LIGHTEST < share < 1 - LIGHTEST and cost < DEAREST * COARSE and len(best) < MOST_CUTS:
            best.append(cut)
    finer = (np.arange(full_height) * scale).astype(int).clip(0, COARSE - 1)
    return [np.rint(cut[finer] / scale).astype(int) for cut in sorted(best, key=lambda cut: float(cut.mean()))]


def _cheapest(
    strips: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the paths from top to bottom through the least ink.

    Args:
        strips: (n, height, width), ink in [0, 1].

    Returns:
        (n,) what each path costs, in pixels of ink, and (n, height) its column in each row.
    """
    count, height, _ = strips.shape
    sideways = np.array([0.05, 0.0, 0.05], np.float32)[:, None, None]  # straight is best where nothing else tells
    total = strips[:, 0]
    came = np.zeros(strips.shape, np.int64)
    for row in range(1, height):
        padded = np.pad(total, ((0, 0), (1, 1)), constant_values=np.inf)
        options = np.stack([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]]) + sideways
        came[:, row] = options.argmin(axis=0) - 1
        total = strips[:, row] + options.min(axis=0)
    paths = np.empty((count, height), np.int64)
    paths[:, -1] = total.argmin(axis=1)
    for row in range(height - 1, 0, -1):
        paths[:, row - 1] = paths[:, row] + came[np.arange(count), row, paths[:, row]]
    return total.min(axis=1), paths
