"""Digits drawn by code are images as MNIST's are, of what their labels say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from digits_export import convert, data, strokes

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def drawn():
    """Return 500 drawn digits."""
    return data.Split(*strokes.draw(500, np.random.default_rng(5)))


def test_equal_generators_draw_equal_digits(drawn):
    """The generator is the only source of chance; another seed draws others."""
    images, labels = strokes.draw(500, np.random.default_rng(5))
    assert np.array_equal(images, drawn.images)
    assert np.array_equal(labels, drawn.labels)
    assert not np.array_equal(strokes.draw(500, np.random.default_rng(6))[0], drawn.images)


def test_drawn_digits_are_prepared_as_mnist_is(drawn):
    """Each is 28 x 28, its longer side 20 pixels, its mass centred to a pixel; all ten are there."""
    assert drawn.images.shape == (500, 28, 28)
    assert drawn.images.dtype == np.uint8
    assert set(drawn.labels.tolist()) == set(range(10))
    for image in drawn.images:
        rows, columns = np.nonzero(image)
        assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        middle = [np.average(axis, weights=image[rows, columns]) for axis in (rows, columns)]
        assert np.abs(np.array(middle) - 13.5).max() <= 1


def test_every_style_shows_the_digit_of_its_label(drawn):
    """The shipped network, reads at least 98 in 100 as they are meant."""
    (graph,) = (MODELS / "digits-mlp").glob("*/model.onnx")
    answers = convert.run(convert.session(graph), drawn.vectors)[0].argmax(axis=1)
    assert (answers == drawn.labels).mean() >= 0.98


@pytest.mark.parametrize(("width", "height"), [(7, 90), (90, 7), (300, 300), (1, 1)])
def test_ink_of_any_size_is_fitted(width, height):
    """A canvas' ink, wherever it lies, becomes 20 pixels long and lands in the middle."""
    canvas = np.zeros((400, 400), np.uint8)
    canvas[50 : 50 + height, 20 : 20 + width] = 255
    rows, columns = np.nonzero(strokes.fit(canvas))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert abs(rows.mean() - 13.5) <= 0.5
    assert abs(columns.mean() - 13.5) <= 0.5
