"""How often pictures that are not MNIST's are read right: scene by scene, by both shipped models.

"refused" are pictures that the client refuses in words; "flagged" are those, the ones that the server is unsure of, and
numbers whose digits touch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import harness
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from sklearn import datasets

from digits_client import DigitClient, InvalidImage, Prediction, Quality, prepare
from digits_export import data

TESTS = harness.HERE.parent / "tests"
sys.path.insert(0, str(TESTS / "client"))

import scenes  # noqa: E402 - the tests' own pictures

Pictures = Iterator[tuple[Image.Image, str]]
"""Pictures with what they show."""
DIGITS = "digits-mlp", "digits-cnn"
NUMBERS = "numbers", "numbers touching"


def mnist() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the test images, (10000, 28, 28), and their labels."""
    images, labels = (
        data.read_idx_bytes(TESTS / "data" / "mnist", f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1")
    )
    return data.parse_images(images), data.parse_labels(labels)


def load_digits(rng: np.random.Generator, *, sharp: bool) -> Pictures:
    """Yield scikit-learn's 8 x 8 digits, enlarged on a larger noisy page."""
    found = datasets.load_digits()
    for image, label in zip(found.images, found.target, strict=True):
        side = int(rng.integers(60, 160))
        small = Image.fromarray((image / 16).astype(np.float32))
        ink = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
        ink = np.clip((ink - 0.5) * 4 + 0.5 if sharp else ink, 0, 1)
        yield scenes.photo(np.pad(ink, [tuple(rng.integers(10, 100, 2)) for _ in range(2)]), rng), str(label)


def printed(rng: np.random.Generator, folder: Path, count: int) -> Pictures:
    """Yield digits of every font in a folder."""
    fonts = sorted(path for path in folder.rglob("*.[to]tf"))
    for index in range(count):
        font = ImageFont.truetype(fonts[index % len(fonts)], int(rng.integers(50, 140)))
        digit = str(rng.integers(10))
        left, top, right, bottom = font.getbbox(digit)
        before, after, above, below = (int(room) for room in rng.integers(10, 80, 4))
        canvas = Image.new("F", (int(right - left) + before + after, int(bottom - top) + above + below))
        ImageDraw.Draw(canvas).text((before - left, above - top), digit, fill=1.0, font=font)
        yield scenes.photo(np.asarray(canvas), rng), digit


def pictures(name: str, count: int, seed: int, fonts: Path | None) -> Pictures:
    """Yield a scene's pictures."""
    rng = np.random.default_rng([seed, *name.encode()])
    if name.startswith("load_digits"):
        yield from list(load_digits(rng, sharp="sharp" in name))[:count]
    elif fonts and name == "fonts":
        yield from printed(rng, fonts, count)
    else:
        images, labels = mnist()
        for index in rng.choice(len(images), count, replace=False):
            if name in NUMBERS:
                indices = rng.integers(len(images), size=4)
                ink = scenes.number(images, indices, rng, touching="touching" in name)
                yield scenes.photo(ink, rng), "".join(map(str, labels[indices]))
            else:
                yield scenes.scene(name, images, index, rng), str(labels[index])


def answers(client: DigitClient, name: str, shown: list[Image.Image]) -> Iterator[tuple[str, bool]]:
    """Yield what the pictures show, empty where they are refused, and whether the server is sure of it."""
    if name in NUMBERS:
        for picture in shown:
            try:
                number = client.read(picture)
            except InvalidImage:
                yield "", False
            else:
                is_odd = [it.is_touching or it.prediction.quality & Quality.LOW_CONFIDENCE for it in number.digits]
                yield number.text, not any(is_odd)
    else:
        for result in client.stream(shown):
            if isinstance(result, Prediction):
                yield result.label, not result.quality & Quality.LOW_CONFIDENCE
            else:
                yield "", False


def measure(client: DigitClient, name: str, shown: list[Image.Image], wanted: list[str]) -> dict[str, Any]:
    """Return a line of the table, and which answers were wrong."""
    start = time.perf_counter()
    found, is_sure = map(np.array, zip(*answers(client, name, shown), strict=True))
    is_right = found == wanted
    return {
        "refused %": 100 * float((found == "").mean()),
        "right %": 100 * float(is_right.mean()),
        "right of the sure %": 100 * float(is_right[is_sure].mean()),
        "flagged %": 100 * float((~is_sure).mean()),
        "ms": 1000 * (time.perf_counter() - start) / len(shown),
        "wrong": np.flatnonzero(~is_right),
    }


def sheet(shown: list[Image.Image], side: int = 96) -> Image.Image:
    """Return a contact sheet: each picture above what it was prepared to."""
    canvas = Image.new("L", (15 * side, -(-len(shown) // 15) * 2 * side), 128)
    for place, picture in enumerate(shown):
        x, y = place % 15 * side, place // 15 * 2 * side
        small = picture.convert("RGBA")
        small.thumbnail((side - 2, side - 2))
        canvas.paste(small.convert("L"), (x, y), small.getchannel("A"))
        digit = Image.fromarray(prepare(picture).reshape(28, 28))
        canvas.paste(digit.resize((side - 2, side - 2), Image.Resampling.NEAREST), (x, y + side))
    return canvas


@click.command()
@click.argument("names", nargs=-1, metavar="[SCENE]...")
@click.option("--count", default=600, show_default=True, help="Pictures of each scene.")
@click.option("--seed", default=1, show_default=True)
@click.option("--fonts", type=click.Path(exists=True, path_type=Path), help="Folder of fonts, for the scene of them.")
@click.option("--sheets", type=click.Path(exists=True, path_type=Path), help="Folder for what was read wrong, as PNG.")
def main(names: tuple[str, ...], count: int, seed: int, fonts: Path | None, sheets: Path | None) -> None:
    """Measure how often pictures of digits, and of numbers of four digits, are read right."""
    lines = []
    names = names or (*scenes.SCENES, "load_digits", "load_digits sharp", *(["fonts"] if fonts else []), *NUMBERS)
    with harness.digits_server("grpcio") as (address, _):
        for name in names:
            shown, wanted = map(list, zip(*pictures(name, count, seed, fonts), strict=True))
            for model in DIGITS:
                with DigitClient(address, model=model) as client:
                    line = measure(client, name, shown, wanted)
                wrong = [shown[index] for index in line.pop("wrong")[:60]]
                if sheets and wrong and name not in NUMBERS:
                    sheet(wrong).save(sheets / f"{name} {model}.png")
                lines.append({"scene": name, "model": model, **line})
    print(harness.table(lines))


if __name__ == "__main__":
    main()
