"""What is drawn as no digit has MNIST's form, and the shipped network that has met such is unsure of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from digits_export import convert, data, package, scribbles

MODELS = Path(__file__).parents[2] / "models"


def test_equal_generators_draw_equal_scribbles():
    """The generator is the only source of chance; each image is 28 x 28 with ink in it."""
    images = scribbles.draw(200, np.random.default_rng(5))
    assert images.shape == (200, 28, 28)
    assert images.dtype == np.uint8
    assert (images.max(axis=(1, 2)) > 0).all()
    assert np.array_equal(images, scribbles.draw(200, np.random.default_rng(5)))
    assert not np.array_equal(images, scribbles.draw(200, np.random.default_rng(6)))


def test_touching_digits_are_made_of_two(sample):
    """Each image has MNIST's form, shows more than either of its digits, and comes of the generator alone."""
    images = scribbles.touching(sample.test.images, 100, np.random.default_rng(5))
    assert images.shape == (100, 28, 28)
    assert np.array_equal(images, scribbles.touching(sample.test.images, 100, np.random.default_rng(5)))
    assert np.median(_widths(images)) > 1.1 * np.median(_widths(sample.test.images[:100]))


def test_the_convolutional_network_is_unsure_of_touching_digits(sample):
    """Of pairs of test digits it abstains on at least four in five."""
    assert _flagged(scribbles.touching(sample.test.images, 500, np.random.default_rng(2027))) >= 0.8


def test_the_convolutional_network_abstains_on_what_is_no_digit():
    """Of letters, signs and scribbles from a seed of their own it abstains on at least nine in ten."""
    assert _flagged(scribbles.draw(500, np.random.default_rng(2027))) >= 0.9


def _flagged(images):
    (folder,) = (MODELS / "digits-cnn").iterdir()
    opened, properties = package.open_graph(folder)
    return package.Abstain(**properties["abstain"]).flags(*convert.run(opened, data.to_vectors(images))).mean()


def _widths(images):
    """Return how wide the ink of each image is, in its heights."""
    spans = [[np.ptp(np.flatnonzero(image.any(axis=axis))) for axis in (0, 1)] for image in images]
    return [width / height for width, height in spans]
