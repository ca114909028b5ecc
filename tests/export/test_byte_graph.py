"""The byte graph gives the float graph's answers from bytes, and the flags that the thresholds ask for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from digits_export import byte_graph, convert, package, quantization

SHIPPED = Path(__file__).parents[2] / "models" / "digits-mlp" / "3"


@pytest.fixture(scope="module")
def answers(test_images):
    """Return the shipped byte graph's columns for all test images."""
    pixels = test_images.images.reshape(-1, 784)
    return dict(
        zip(byte_graph.OUTPUTS, convert.session(SHIPPED / "bytes.onnx").run(None, {"pixels": pixels}), strict=True)
    )


@pytest.mark.parametrize("size", [1, 7, 512])
def test_bytes_and_floats_give_the_same_probabilities(test_images, size):
    """Over all 10,000 test images, whatever the batch, the graphs agree to 1e-5."""
    floats, derived = convert.session(SHIPPED / "model.onnx"), convert.session(SHIPPED / "bytes.onnx")
    pixels = test_images.images.reshape(-1, 784)
    expected = convert.run(floats, test_images.vectors)[0]
    # Alone, a tenth of the images: what one row does can't depend on its place.
    starts = range(0, len(pixels) if size > 1 else 1000, size)
    for start in starts:
        given = derived.run(["probabilities"], {"pixels": pixels[start : start + size]})[0]
        assert np.abs(given - expected[start : start + size]).max() <= 1e-5


def test_the_first_layer_runs_in_integers_and_says_so():
    """The 784 x 128 weights are int8 on a 7-bit grid, and the metadata names the graph they were derived from."""
    graph = onnx.load(SHIPPED / "bytes.onnx")
    weights = next(onnx.numpy_helper.to_array(c) for c in graph.graph.initializer if list(c.dims) == [784, 128])
    assert weights.dtype == np.int8
    assert np.abs(weights).max() == 63
    assert byte_graph.first_layer_of(SHIPPED / "bytes.onnx") == "integers"
    derived_from = {entry.key: entry.value for entry in graph.metadata_props}["digits.derived_from"]
    assert derived_from == hashlib.sha256((SHIPPED / "model.onnx").read_bytes()).hexdigest()


def test_columns_are_read_out_of_the_probabilities(answers, test_images):
    """Digits, confidences and ink are what NumPy reads out, in their types."""
    assert [answers[name].dtype for name in byte_graph.OUTPUTS] == [np.uint8, *[np.float32] * 2, np.uint8, np.float32]
    assert np.array_equal(answers["digits"], answers["probabilities"].argmax(axis=1))
    assert np.array_equal(answers["confidences"], answers["probabilities"].max(axis=1))
    assert np.abs(answers["ink"] - test_images.vectors.mean(axis=1)).max() < 1e-6


def test_flags_are_those_of_the_thresholds(answers, test_images):
    """Low confidence, by probability or outlier score, and unusual ink are flagged as the metadata says."""
    opened, properties = package.open_graph(SHIPPED)
    unsure = package.Abstain(**properties["abstain"]).flags(*convert.run(opened, test_images.vectors))
    assert (((answers["flags"] & byte_graph.LOW_CONFIDENCE) > 0) == unsure).mean() >= 0.9999  # scores on the fence
    edges = properties["reference"]["ink_histogram"]["edges"]
    outside = (answers["ink"] < edges[0]) | (answers["ink"] > edges[-1])
    assert np.array_equal((answers["flags"] & byte_graph.OUT_OF_RANGE) > 0, outside)


@pytest.mark.parametrize(("ink", "flags"), [(0, byte_graph.BLANK), (200, byte_graph.INVERTED), (60, 0)])
def test_blank_and_inverted_images_are_flagged(ink, flags):
    """An empty sheet and one with more ink than paper are told."""
    pixels = np.full((1, 784), ink, np.uint8)
    given = convert.session(SHIPPED / "bytes.onnx").run(["flags"], {"pixels": pixels})[0][0]
    assert given & (byte_graph.BLANK | byte_graph.INVERTED) == flags


def test_weights_off_the_grid_run_in_floats(small_package, sample):
    """A network trained without a grid gets a byte graph all the same, which computes in floats."""
    assert byte_graph.first_layer_of(small_package / "bytes.onnx") == "floats"
    convert.check_bytes(small_package / "model.onnx", small_package / "bytes.onnx", sample.test.images)


def test_rounding_keeps_sums_over_real_images(sample):
    """Rounded input by input, sums change less than half of what plain rounding changes them by."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (784, 16)).astype(np.float32)
    vectors = sample.train.vectors
    grid = quantization.put_on_grid(weights, vectors[:2000])
    steps = np.abs(weights).max(axis=0) / 63
    plain = np.round(weights / steps) * steps
    change, before = (np.square(vectors[2000:] @ (other - weights)).mean() ** 0.5 for other in (grid, plain))
    assert change < before / 2
    whole, found = quantization.find_grid(grid)
    assert np.abs(whole).max() <= 63
    assert np.allclose(whole * found, grid, rtol=1e-6)
    assert quantization.find_grid(weights) is None
