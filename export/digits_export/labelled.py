"""What users say of a model's classes: their labels, and images whose labels are known."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digits_export.data import Split, one_line
from digits_export.data import load as load_mnist
from digits_export.foreign import ForeignModelError


@dataclass(frozen=True)
class Labelled:
    """Images with labels to measure a model by, and whose they are."""

    name: str
    images: Split
    """Choices (temperature, threshold) are made on every other one."""

    def check(self, classes: int) -> None:
        """Check that labels are numbers of so many classes.

        Raises:
            ForeignModelError: One is not.
        """
        least, most = self.images.labels.min(), self.images.labels.max()
        if least < 0 or most >= classes:
            raise ForeignModelError(
                f"labels of {self.name} go from {least} to {most}, allowed: 0 to {classes - 1}, as it has {classes} "
                "classes"
            )


def read_labels(text: str) -> list[str]:
    """Return labels from a file, one a line, or from a list with commas.

    Raises:
        ForeignModelError: It is neither, or the file isn't text.
    """
    try:
        return Path(text).read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ForeignModelError(f"labels in {text} are not UTF-8, allowed: one label a line") from error
    except OSError as error:
        if "," not in text:
            raise ForeignModelError(
                f"labels are {text!r}, allowed: a,b,c or a file with one a line ({error.strerror})"
            ) from error
    return [label.strip() for label in text.split(",")]


def read_labelled(text: str, folder: Path) -> Labelled:
    """Return MNIST's test images, or those of an .npz file.

    Raises:
        ForeignModelError: The file is damaged, has no such arrays, or labels that are no whole numbers.
        DataError: MNIST can't be had.
    """
    if text == "mnist":
        return Labelled("MNIST", load_mnist(folder).test)
    try:
        with zipfile.ZipFile(text), np.load(text) as stored:  # NumPy takes what is no zip file for a pickle
            images = next((stored[name] for name in ("images", "x_test", "x") if name in stored), None)
            labels = next((stored[name] for name in ("labels", "y_test", "y") if name in stored), None)
            names = list(stored)
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise ForeignModelError(f"data is {text!r}, allowed: mnist, or an .npz file ({one_line(error)})") from error
    if images is None or labels is None:
        raise ForeignModelError(f"{text} has arrays {names}, allowed: images and labels")
    count = labels.size
    are_images = images.dtype == np.uint8 and images.shape[:1] == (count,) and images.size == count * 784
    if not are_images or labels.dtype.kind not in "biuf" or labels.shape != (count,) or count < 2:
        raise ForeignModelError(
            f"{text} has images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}, allowed: "
            "uint8 (n, 28, 28) and integers (n,)"
        )
    broken = labels[~np.isfinite(labels) | (labels != np.rint(labels))]
    if len(broken):
        raise ForeignModelError(f"{text} has the label {broken[0]}, allowed: whole numbers")
    return Labelled(Path(text).name, Split(images.reshape(count, 28, 28), labels.astype(np.int64)))
