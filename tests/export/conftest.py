"""Small real samples of MNIST and a network trained on them: the tests shrink the recipe, never the code."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow", reason="digits-export is not installed", exc_type=ImportError)

from digits_export import data, package, recipe, training

FOREIGN_WARNINGS = (
    # Keras 3.15 hands h5py variables whose __array__ predates NumPy 2's `copy`
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)

MNIST = Path(__file__).parents[1] / "data" / "mnist"


def pytest_configure(config: pytest.Config) -> None:
    """Let other people's deprecations pass; every other warning fails the test that raises it."""
    for line in FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def test_images() -> data.Split:
    """Return all 10,000 test images."""
    return data.Split(
        data.parse_images(data.read_idx_bytes(MNIST, "t10k-images-idx3-ubyte")),
        data.parse_labels(data.read_idx_bytes(MNIST, "t10k-labels-idx1-ubyte")),
    )


@pytest.fixture(scope="session")
def sample(test_images: data.Split) -> data.Mnist:
    """Return 6,000 real images to learn from and 1,000 others to test on: enough to beat 85 % in one epoch."""
    return data.Mnist(test_images.take(slice(0, 6000)), test_images.take(slice(6000, 7000)))


@pytest.fixture(scope="session")
def small_recipe() -> recipe.Recipe:
    """Return the `ann-dropout` recipe, shrunk to two epochs."""
    whole = recipe.load("ann-dropout")
    return dataclasses.replace(whole, fit=dataclasses.replace(whole.fit, epochs=2, batch_size=64))


@pytest.fixture(scope="session")
def small_package(sample, small_recipe, tmp_path_factory) -> Path:
    """Return the folder of a package trained, converted and proven here."""
    folder = tmp_path_factory.mktemp("models") / "small" / "1"
    model, history = training.train(small_recipe, sample, folder, quiet=True)
    package.write(model, small_recipe, history, sample, folder)
    return folder
