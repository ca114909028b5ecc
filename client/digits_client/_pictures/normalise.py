"""The ink of one digit, to 28 x 28 as MNIST has its digits (LeCun et al. 1998, section III.A), in MNIST's pen."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from digits_client._arrays import SIDE
from digits_client._pictures.clean import Ink

BOX = 20  # side of the square that the ink is scaled into
PENS = 2.5, 5.0  # narrowest and widest strokes that pass as they are; MNIST's are 2.9 wide
FINE = 5  # pixels to one of the result's while the pen is changed


def normalised(ink: Ink) -> npt.NDArray[np.uint8]:
    """Return (28, 28): scaled with its proportions into 20 x 20, its centre of mass in the middle.

    Args:
        ink: (height, width), cut to nothing but one digit.
    """
    scale = BOX * FINE / max(ink.shape)
    size = tuple(max(1, round(length * scale)) for length in ink.shape[::-1])
    fine = cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return _centred(_shrunk(_in_mnists_pen(np.pad(np.asarray(fine, np.uint8), 4 * FINE))))


def _in_mnists_pen(fine: Ink) -> Ink:
    """Return the ink with hairlines and felt pens brought towards the width of MNIST's strokes."""
    full = float(np.percentile(fine[fine > 0.5 * fine.max()], 75))
    fine = np.asarray(cv2.convertScaleAbs(fine, alpha=255 / full), np.uint8)
    inked = (fine > 127).astype(np.uint8)
    depth = cv2.distanceTransform(inked, cv2.DIST_L2, 5)
    width = 4 * float(depth[inked > 0].mean())
    length = max(cv2.boundingRect(inked)[2:])
    pen = BOX * width / length
    wanted = min(max(pen, PENS[0]), PENS[1])
    more = (wanted * length - BOX * width) / (2 * (BOX - wanted))  # (length + 2 more) : (width + 2 more) = 20 : wanted
    reach = round(min(abs(more), 3.5 * FINE))
    if more < 0:
        reach = min(reach, max(0, int(depth.max()) - 1))  # of a dot something is left
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return np.asarray((cv2.dilate if more > 0 else cv2.erode)(fine, disc), np.uint8)


def _shrunk(fine: Ink) -> Ink:
    """Return the inked part scaled to fit in 20 x 20, its darkest as dark as can be."""
    inked = fine > 76  # 0.3 of full ink
    (top, bottom), (left, right) = (np.flatnonzero(inked.any(axis=axis))[[0, -1]] for axis in (1, 0))
    cut = fine[top : bottom + 1, left : right + 1]
    scale = BOX / max(cut.shape)
    size = tuple(max(1, round(length * scale)) for length in cut.shape[::-1])
    small = cv2.resize(cut, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.convertScaleAbs(small, alpha=255 / float(small.max())), np.uint8)


def _centred(ink: Ink) -> npt.NDArray[np.uint8]:
    """Return (28, 28) with the centre of mass of `ink` (at most 20 x 20) in the middle."""
    moments = cv2.moments(ink)
    height, width = ink.shape
    place = [
        min(max(round((SIDE - 1) / 2 - moments[which] / moments["m00"]), 0), SIDE - length)
        for which, length in (("m01", height), ("m10", width))
    ]
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[place[0] : place[0] + height, place[1] : place[1] + width] = ink
    return canvas
