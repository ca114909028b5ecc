"""How often pictures that are not MNIST's are read right: each scene, with both shipped models.

    python benchmarks/pictures.py [--count 600] [--seed 1] [--fonts FOLDER] [--sheets FOLDER] [SCENE ...]

Runs the models itself, without a server: what is measured is the preparation. "refused" are pictures that the client
refuses in words; "flagged" are those and the ones that the server would call uncertain.
"""

# ruff: noqa: ANN001, ANN201, ANN204 - numpy arrays throughout, and nobody imports it
import argparse
import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont
from sklearn import datasets

from digits_client import InvalidImage, prepare

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "client"))

import scenes  # noqa: E402  the tests' own pictures


class Model:
    """A shipped model and the thresholds that the server judges its answers by."""

    def __init__(self, name) -> None:
        self.name = name
        newest = max((ROOT / "models" / name).iterdir(), key=lambda folder: int(folder.name))
        self.session = onnxruntime.InferenceSession(newest / "model.onnx")
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.abstain = json.loads(metadata["digits.abstain"])

    def __call__(self, rows):
        """Return the digits (n,) and whether each is certain (n,)."""
        outputs = self.session.run(None, {self.session.get_inputs()[0].name: rows.astype(np.float32) / 255})
        certain = outputs[0].max(axis=1) >= self.abstain["confidence"]
        if len(outputs) > 1:
            certain &= outputs[1].reshape(-1) <= self.abstain["outlier_score"]
        return outputs[0].argmax(axis=1), certain


def mnist():
    """Return the test images (10000, 28, 28) and labels (10000,)."""
    folder = ROOT / "tests" / "data" / "mnist"
    read = lambda name, skip: np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8)[skip:]  # noqa: E731
    return read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28), read("t10k-labels-idx1-ubyte.gz", 8)


def load_digits(rng, sharp):
    """Yield scikit-learn's 8 x 8 digits enlarged on a larger noisy page."""
    data = datasets.load_digits()
    for image, label in zip(data.images, data.target, strict=True):
        size = int(rng.integers(60, 160))
        ink = np.asarray(
            Image.fromarray((image / 16).astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        )
        ink = np.clip((ink - 0.5) * 4 + 0.5, 0, 1) if sharp else np.clip(ink, 0, 1)
        yield scenes.photo(np.pad(ink, [tuple(rng.integers(10, 100, 2)) for _ in range(2)]), rng), label


def printed(rng, folder, count):
    """Yield digits of every font in `folder`."""
    fonts = sorted(path for path in folder.rglob("*.[to]tf"))
    for index in range(count):
        font = ImageFont.truetype(fonts[index % len(fonts)], int(rng.integers(50, 140)))
        digit = int(rng.integers(10))
        left, top, right, bottom = font.getbbox(str(digit))
        a, b, c, d = (int(x) for x in rng.integers(10, 80, 4))
        canvas = Image.new("F", (right - left + a + b, bottom - top + c + d))
        ImageDraw.Draw(canvas).text((a - left, c - top), str(digit), fill=1.0, font=font)
        yield scenes.photo(np.asarray(canvas), rng), digit


def pictures(name, count, seed, folder):
    """Yield the scene's pictures with their labels."""
    rng = np.random.default_rng([seed, *name.encode()])
    if name.startswith("load_digits"):
        yield from list(load_digits(rng, "sharp" in name))[:count]
    elif name == "fonts":
        yield from printed(rng, folder, count)
    else:
        images, labels = mnist()
        for index in rng.choice(len(images), count, replace=False):
            yield scenes.scene(name, images, index, rng), labels[index]


def main() -> None:
    """Print a line for each scene."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fonts", type=Path)
    parser.add_argument("--sheets", type=Path, help="folder for pictures of what was prepared, the wrong ones first")
    arguments = parser.parse_args()
    names = arguments.scenes or [
        *scenes.SCENES,
        "load_digits",
        "load_digits sharp",
        *(["fonts"] if arguments.fonts else []),
    ]
    models = [Model("digits-mlp"), Model("digits-cnn")]
    print(
        "scene             refused %    ms"
        + "".join(f"   {model.name}: right / certain / flagged %" for model in models)
    )
    for name in names:
        shown, rows, labels, refused, took = [], [], [], [], 0.0
        for picture, label in pictures(name, arguments.count, arguments.seed, arguments.fonts):
            start = time.perf_counter()
            try:
                row = prepare(picture)
                refused.append(False)
            except InvalidImage:
                row = np.zeros((1, 784), np.uint8)
                refused.append(True)
            took += time.perf_counter() - start
            shown.append(picture)
            rows.append(row)
            labels.append(label)
        line = f"{name:18}{100 * np.mean(refused):9.1f}{1000 * took / len(rows):6.1f}"
        wrong = np.zeros(len(rows), bool)
        for model in models:
            digits, certain = model(np.concatenate(rows))
            certain &= ~np.array(refused)
            right = (digits == labels) & ~np.array(refused)
            wrong |= ~right
            line += (
                f"   {100 * right.mean():5.1f} / {100 * right[certain].mean():5.1f} / {100 * (1 - certain.mean()):4.1f}"
            )
        print(line, flush=True)
        if arguments.sheets:
            sheet(shown, rows, np.argsort(~wrong, kind="stable")[:60]).save(arguments.sheets / f"{name}.png")


def sheet(shown, rows, chosen, side=96):
    """Return a contact sheet: each picture above what it was prepared to."""
    canvas = Image.new("L", (15 * side, -(-len(chosen) // 15) * 2 * side), 128)
    for place, index in enumerate(chosen):
        x, y = place % 15 * side, place // 15 * 2 * side
        small = shown[index].convert("RGBA")
        small.thumbnail((side - 2, side - 2))
        canvas.paste(small.convert("L"), (x, y), small.getchannel("A"))
        canvas.paste(Image.fromarray(rows[index].reshape(28, 28)).resize((side - 2, side - 2), 0), (x, y + side))
    return canvas


if __name__ == "__main__":
    main()
