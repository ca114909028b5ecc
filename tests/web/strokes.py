"""The ten digits as a hand would draw them: strokes of points in the unit square, x to the right and y down."""

import math


def arc(x, y, width, height, start, end):
    """Return points on an ellipse about (x, y), from one angle to another: 0 right, 90 at the bottom."""
    count = max(6, abs(end - start) // 12)
    angles = [math.radians(start + (end - start) * i / count) for i in range(count + 1)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


DIGITS = {
    0: [arc(0.5, 0.5, 0.2, 0.34, -90, 270)],
    1: [[(0.55, 0.15), (0.5, 0.5), (0.45, 0.85)]],
    2: [[*arc(0.48, 0.34, 0.2, 0.18, -170, 40), (0.3, 0.82), (0.76, 0.8)]],
    3: [[*arc(0.47, 0.32, 0.19, 0.17, -150, 90), *arc(0.47, 0.67, 0.22, 0.18, -90, 150)]],
    4: [[(0.34, 0.15), (0.28, 0.52), (0.7, 0.5)], [(0.68, 0.16), (0.63, 0.5), (0.6, 0.86)]],
    5: [[(0.36, 0.16), (0.33, 0.46), *arc(0.45, 0.63, 0.21, 0.2, -110, 140)], [(0.36, 0.16), (0.7, 0.15)]],
    6: [[(0.62, 0.13), (0.44, 0.32), (0.36, 0.55), *arc(0.5, 0.68, 0.16, 0.16, 190, -150)]],
    7: [[(0.25, 0.2), (0.5, 0.2), (0.73, 0.18), (0.6, 0.45), (0.48, 0.86)]],
    8: [[*arc(0.5, 0.32, 0.15, 0.16, 60, -240), *arc(0.5, 0.67, 0.17, 0.18, -60, 240)]],
    9: [[*arc(0.48, 0.35, 0.17, 0.17, -20, -340), (0.65, 0.3), (0.63, 0.55), (0.56, 0.86)]],
}


def draw(page, strokes):
    """Draw strokes on the pad with the mouse."""
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=2)
        page.mouse.up()
