"""Pictures of one digit as people take them: on paper, in shadow, in a form's box, among specks and neighbours.

Every scene takes a digit's ink (28, 28) uint8 and a generator, and returns a picture.
"""

import math

import cv2
import numpy as np
from PIL import Image

PAPER, INK = 225, 45  # grey levels, of 255


def enlarged(ink, size):
    """Return ink as a float in [0, 1], `size` pixels wide and high, its edges as sharp as a pen's."""
    large = cv2.resize(ink.astype(np.float32) / 255, (size, size), interpolation=cv2.INTER_CUBIC)
    large = cv2.GaussianBlur(large, (0, 0), size / 28 / 3)
    return np.clip((large - 0.5) * 2 + 0.5, 0, 1)


def page(ink, rng, size=None, room=(0.1, 0.9)):
    """Return a digit's ink, placed on a page, and its box; each margin is `room` times its size."""
    size = size or int(rng.integers(60, 200))
    large = enlarged(ink, size)
    left, right, top, bottom = (int(size * rng.uniform(*room)) for _ in range(4))
    canvas = np.zeros((top + size + bottom, left + size + right), np.float32)
    canvas[top : top + size, left : left + size] = large
    return canvas, (left, top, size)


def photo(ink, rng, light=1.0, strength=1.0, noise=5):
    """Return what a camera sees: ink on paper, lit, with noise."""
    reflected = PAPER + (INK - PAPER) * ink * strength
    grey = reflected * light + rng.normal(0, noise, ink.shape)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def plain(ink, rng):
    """The digit on its page."""
    return photo(page(ink, rng)[0], rng)


def small(ink, rng):
    """A small digit on a big page."""
    return photo(page(ink, rng, int(rng.integers(36, 60)), (2, 6))[0], rng)


def upside(ink, rng):
    """Chalk on a blackboard."""
    return Image.fromarray(255 - np.asarray(plain(ink, rng)))


def slope(ink, rng):
    """Light that falls off from one side to the other."""
    canvas, _ = page(ink, rng)
    y, x = np.mgrid[0 : 1 : canvas.shape[0] * 1j, 0 : 1 : canvas.shape[1] * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    return photo(canvas, rng, 0.75 + 0.5 * along)


def shadow(ink, rng):
    """A hand's shadow with an edge across the digit."""
    canvas, _ = page(ink, rng)
    height, width = canvas.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along = (x - width * rng.uniform(0.3, 0.7)) * math.cos(angle) + (y - height * rng.uniform(0.3, 0.7)) * math.sin(
        angle
    )
    across = -(x - width / 2) * math.sin(angle) + (y - height / 2) * math.cos(angle)
    along += (
        min(canvas.shape) * rng.uniform(0, 0.1) * np.sin(across / min(canvas.shape) * rng.uniform(3, 9))
    )  # knuckles
    soft = min(canvas.shape) * rng.uniform(0.005, 0.04)
    return photo(canvas, rng, 1 - rng.uniform(0.25, 0.55) / (1 + np.exp(np.clip(along / soft, -50, 50))))


def specks(ink, rng):
    """Three specks of dirt beside the digit."""
    canvas, (_left, _top, size) = page(ink, rng, room=(0.3, 0.9))
    ys, xs = np.nonzero(canvas > 0.5)
    for _ in range(3):
        radius = size * rng.uniform(0.015, 0.04)
        for _ in range(100):
            x, y = rng.uniform(0, canvas.shape[1]), rng.uniform(0, canvas.shape[0])
            if np.hypot(xs - x, ys - y).min() > radius + size * 0.08:
                break
        cv2.circle(canvas, (int(x), int(y)), max(1, round(radius)), float(rng.uniform(0.6, 1)), -1, cv2.LINE_AA)
    return photo(canvas, rng)


def neighbour(ink, rng, other):
    """A part of the next digit, cut by the picture's edge."""
    canvas, (_left, top, size) = page(ink, rng, room=(0.25, 0.7))
    beside = enlarged(other, size)
    columns = np.flatnonzero(beside.max(0) > 0.3)
    shown = max(2, int((columns[-1] - columns[0]) * rng.uniform(0.15, 0.5)))
    part = beside[:, columns[0] : columns[0] + shown] if rng.random() < 0.5 else None
    if part is not None:
        place = canvas[top : top + size, -shown:]
    else:
        part = beside[:, columns[-1] - shown + 1 : columns[-1] + 1]
        place = canvas[top : top + size, :shown]
    np.maximum(place, part, out=place)
    return photo(canvas, rng)


def frame(ink, rng):
    """A form's field, drawn around the digit."""
    canvas, (_left, _top, size) = page(ink, rng, room=(0.3, 0.9))
    ys, xs = np.nonzero(canvas > 0.3)
    thick = max(1, round(size * rng.uniform(0.01, 0.04)))
    gap = [thick + size * rng.uniform(0.04, 0.2) for _ in range(4)]
    a = (int(xs.min() - gap[0]), int(ys.min() - gap[1]))
    b = (int(xs.max() + gap[2]), int(ys.max() + gap[3]))
    corners = np.array([a, (b[0], a[1]), b, (a[0], b[1])], np.float32)
    turn = math.radians(rng.uniform(-3, 3))
    middle = corners.mean(0)
    corners = (corners - middle) @ np.array(
        [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
    ) + middle
    lines = np.zeros_like(canvas)
    cv2.polylines(
        lines,
        [corners.round().astype(np.int32)],
        isClosed=True,
        color=float(rng.uniform(0.6, 1)),
        thickness=thick,
        lineType=cv2.LINE_AA,
    )
    return photo(np.maximum(canvas, lines), rng)


def table(ink, rng):
    """A dark table beside the sheet, at one or two edges."""
    canvas, (_left, _top, size) = page(ink, rng, room=(0.35, 0.9))
    height, width = canvas.shape
    grey = np.full(canvas.shape, 1, np.float32)
    for edge in rng.choice(4, int(rng.integers(1, 3)), replace=False):
        near, far = rng.uniform(0.06, 0.3, 2) * size
        shape = {
            0: [(0, 0), (near, 0), (far, height), (0, height)],
            1: [(width, 0), (width - near, 0), (width - far, height), (width, height)],
            2: [(0, 0), (0, near), (width, far), (width, 0)],
            3: [(0, height), (0, height - near), (width, height - far), (width, height)],
        }[int(edge)]
        cv2.fillPoly(grey, [np.array(shape).round().astype(np.int32)], rng.uniform(0.1, 0.4))
    return photo(canvas, rng, grey)


def _lines(ink, rng, both, strength):
    canvas, (_, _, size) = page(ink, rng, room=(0.2, 0.9))
    lines = np.zeros_like(canvas)
    step = size * rng.uniform(0.25, 0.6)
    thick = max(1, round(size * 0.012))
    tilt = math.tan(math.radians(rng.uniform(-1, 1)))
    height, width = canvas.shape
    for y in np.arange(rng.uniform(0, step), height, step):
        cv2.line(lines, (0, round(y)), (width, round(y + tilt * width)), strength, thick, cv2.LINE_AA)
    for x in np.arange(rng.uniform(0, step), width, step) if both else ():
        cv2.line(lines, (round(x), 0), (round(x - tilt * height), height), strength, thick, cv2.LINE_AA)
    return photo(np.maximum(canvas, lines), rng)


def ruled(ink, rng):
    """Paper with faint lines."""
    return _lines(ink, rng, both=False, strength=rng.uniform(0.15, 0.4))


def grid(ink, rng):
    """Squared paper."""
    return _lines(ink, rng, both=True, strength=rng.uniform(0.15, 0.4))


def dark_grid(ink, rng):
    """Squared paper, its lines as dark as the ink."""
    return _lines(ink, rng, both=True, strength=rng.uniform(0.6, 1))


def vignette(ink, rng):
    """A picture darker towards its corners."""
    canvas, _ = page(ink, rng)
    y, x = np.mgrid[-1 : 1 : canvas.shape[0] * 1j, -1 : 1 : canvas.shape[1] * 1j]
    return photo(canvas, rng, 1 - rng.uniform(0.3, 0.7) * np.minimum(1, (x * x + y * y) / 2))


def pencil(ink, rng):
    """Faint, grainy ink."""
    canvas, _ = page(ink, rng)
    grain = cv2.GaussianBlur(rng.normal(0, 1, canvas.shape).astype(np.float32), (0, 0), 1.2)
    return photo(canvas * np.clip(0.8 + 0.5 * grain, 0, 1), rng, strength=rng.uniform(0.3, 0.55), noise=4)


def pen(ink, rng):
    """The same hand with a thinner or thicker pen, 1/28 to 5/28 of the digit's square wide."""
    canvas, (_left, _top, size) = page(ink, rng)
    more = rng.uniform(-0.9, 2.0) / 28 * size  # MNIST's is 2.9 of 28 wide
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(1, round(abs(more))),) * 2)
    return photo((cv2.dilate if more > 0 else cv2.erode)(canvas, kernel), rng)


def transparent(ink, rng):
    """White ink on a transparent ground, or black."""
    canvas, _ = page(ink, rng)
    colour = 255 * int(rng.integers(0, 2))
    alpha = np.clip(canvas * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([np.full_like(alpha, colour)] * 3 + [alpha]))


def impulse(ink, rng):
    """Salt and pepper."""
    grey = np.array(plain(ink, rng))
    where = rng.random(grey.shape)
    grey[where < 0.02], grey[where > 0.98] = 0, 255
    return Image.fromarray(grey)


SCENES = {
    one.__name__: one
    for one in (
        *(plain, small, upside, slope, shadow, specks, neighbour, frame, table, ruled, grid, dark_grid),
        *(vignette, pencil, pen, transparent, impulse),
    )
}


def scene(name, images, index, rng):
    """Return the scene `name` of image `index` of `images` (n, 28, 28)."""
    if name == "neighbour":
        return neighbour(images[index], rng, images[int(rng.integers(len(images)))])
    return SCENES[name](images[index], rng)


def number(images, indices, rng, gap=(2, 12), touching=False):
    """Return ink of digits in a row, (height, width) in [0, 1]; `touching` makes one pair of neighbours meet."""
    base = int(rng.integers(60, 140))
    meet = int(rng.integers(len(indices) - 1)) if touching else -1
    canvas = np.zeros((base * 2, base * 2 * (len(indices) + 1)), np.float32)
    right = base // 2
    for place, index in enumerate(indices):
        size = int(base * rng.uniform(0.85, 1.15))
        large = enlarged(images[index], size)
        slant = rng.uniform(-0.2, 0.2)
        large = cv2.warpAffine(large, np.float32([[1, slant, -slant * size / 2], [0, 1, 0]]), (size, size))
        columns = np.flatnonzero(large.max(0) > 0.2)
        large = large[:, columns[0] : columns[-1] + 1]
        top = base // 2 + int(rng.uniform(-0.08, 0.08) * base)
        if place - 1 == meet:
            left = right
            while (
                left > max(1, right - base // 2)
                and not (np.minimum(canvas[top : top + size, left : left + large.shape[1]], large) > 0.5).any()
            ):
                left -= 1
        else:
            left = right + int(rng.integers(*gap))
        part = canvas[top : top + size, left : left + large.shape[1]]
        np.maximum(part, large, out=part)
        right = left + large.shape[1]
    return canvas[:, : right + base // 2]
