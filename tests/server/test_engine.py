"""The engine, on toy models that onnxruntime really runs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from packages import image_of, write_byte_graph, write_package

from digits_server.errors import ModelRefused
from digits_server.inference.cost import LATENCY_BUDGET_S, CostCurve
from digits_server.inference.engine import (
    BLANK,
    COLUMNS,
    INVERTED,
    LOW_CONFIDENCE,
    OUT_OF_RANGE,
    Engine,
    Limits,
)
from digits_server.inference.graph import Graph

LIMITS = Limits(low_confidence=0.5, ink_range=(0.005, 0.42))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = write_package(tmp_path_factory.mktemp("engine") / "toy" / "1")
    return Engine(Graph(folder / "model.onnx"), LIMITS)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """An engine with a byte graph beside the float graph."""
    folder = write_package(tmp_path_factory.mktemp("engine") / "toy" / "1")
    write_byte_graph(folder, ink_range=LIMITS.ink_range)
    return Engine(Graph(folder / "model.onnx"), LIMITS, Graph(folder / "bytes.onnx"))


def test_predicts_all_images_in_order(engine):
    """Images of several callers, bytes and floats mixed, come back as one set of columns in order."""
    digits = [3, 1, 4, 1, 5, 9, 2, 6]
    images = np.stack([image_of(digit) for digit in digits])
    floats = images[2:5].astype(np.float32) / 255
    answers = engine.predict([images[:2], floats, images[5:]])
    assert answers.digits.tolist() == digits
    assert answers.probabilities.shape == (8, 10)
    np.testing.assert_allclose(answers.probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(answers.confidences, answers.probabilities.max(axis=1))


def test_pixels_and_floats_get_the_same_answer(engine):
    """uint8 and the same values divided by 255 agree to 1e-5."""
    images = np.random.default_rng(0).integers(0, 256, (64, 784), dtype=np.uint8)
    as_floats = engine.predict([images.astype(np.float32) / 255]).probabilities
    np.testing.assert_allclose(engine.predict([images]).probabilities, as_floats, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "flags"),
    [
        (image_of(3), 0),
        (np.zeros(784, np.uint8), BLANK | OUT_OF_RANGE | LOW_CONFIDENCE),
        (255 - image_of(3, ink=0), INVERTED | OUT_OF_RANGE | LOW_CONFIDENCE),
        (image_of(3, ink=10), LOW_CONFIDENCE),
        (np.where(np.arange(784) < 7, 200, 0).astype(np.uint8), LOW_CONFIDENCE),
    ],
)
def test_odd_images_are_flagged(engine, both, image, flags):
    """Blank, inverted, too faint or too bold images, and those the model is unsure of, each get their bit."""
    for one in (engine, both):
        assert one.predict([image[np.newaxis]]).flags.tolist() == [flags]


def columns(answers):
    return {name: getattr(answers, name).tolist() for name in COLUMNS}


def test_bytes_and_floats_of_one_batch_are_answered_in_order(both):
    """Bytes, floats that are bytes over 255, and other floats share a batch; each gets its own answer in its place."""
    digits = [3, 1, 4, 1, 5, 9]
    images = [image_of(digit)[np.newaxis] for digit in digits]
    mixed = [
        images[0],
        images[1] / np.float32(255),
        images[2] / np.float32(255) * np.float32(0.9),
        np.concatenate(images[3:5]),
        images[5] / np.float32(255) * np.float32(0.8),
    ]
    answers = both.predict(mixed)
    assert answers.digits.tolist() == digits
    for at, alone in [(0, mixed[0]), (2, mixed[2]), (5, mixed[4])]:
        np.testing.assert_allclose(answers.probabilities[at], both.predict([alone]).probabilities[0], atol=1e-6)


def test_floats_that_are_bytes_take_their_way(both):
    """Bytes over 255 get exactly the answers of the bytes, whichever way they were divided."""
    images = np.random.default_rng(0).integers(0, 256, (64, 784), dtype=np.uint8)
    expected = columns(both.predict([images]))
    for floats in (images / np.float32(255), (images / 255).astype(np.float32), images * np.float32(1 / 255)):
        assert columns(both.predict([floats])) == expected


def test_other_floats_are_not_rounded(both, engine):
    """Half a grey level is no byte: the float graph answers, as it does where there is no byte graph."""
    images = np.random.default_rng(0).integers(0, 255, (8, 784), dtype=np.uint8)
    halves = (images + np.float32(0.5)) / np.float32(255)
    assert columns(both.predict([halves])) == columns(engine.predict([halves]))
    assert columns(both.predict([halves])) != columns(both.predict([images]))


def test_both_graphs_agree(both, engine):
    """Bytes get the same answer to 1e-5 with a byte graph and without one, alone and in a batch."""
    images = np.random.default_rng(0).integers(0, 256, (512, 784), dtype=np.uint8)
    for rows in (1, 7, 512):
        found, expected = both.predict([images[:rows]]), engine.predict([images[:rows]])
        for name in COLUMNS:
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def write_weights_apart(folder, name):
    """Write a toy model whose weights are in a file of that name, and return its path."""
    path = write_package(folder / "toy" / "1") / "model.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    return path


def test_weights_beside_the_model(tmp_path):
    """Weights in a file of their own are read when the graph is loaded, and not again."""
    path = write_weights_apart(tmp_path, "model.onnx.data")
    engine = Engine(Graph(path))
    with path.with_name("model.onnx.data").open("r+b") as file:
        file.write(bytes(784 * 10 * 4))
    assert engine.predict([image_of(3)[np.newaxis]]).digits.tolist() == [3]


def test_weights_elsewhere_are_refused(tmp_path):
    """The refusal says which file is allowed, whether it is missing or the model names another one."""
    path = write_weights_apart(tmp_path, "weights.bin")
    with pytest.raises(ModelRefused, match=r"for which model\.onnx\.data is allowed; that is missing"):
        Graph(path)
    path.with_name("model.onnx.data").write_bytes(b"")
    with pytest.raises(ModelRefused, match="it names another one"):
        Graph(path)


def test_second_output_flags_outliers(tmp_path):
    """A model may say how little an image looks like a digit; above its threshold the image is flagged."""
    folder = write_package(tmp_path / "toy" / "1")
    model = onnx.load(folder / "model.onnx")
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    model.graph.initializer.append(axes)
    model.graph.node.append(helper.make_node("ReduceSum", ["vectors", "axes"], ["outlier_score"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("outlier_score", TensorProto.FLOAT, ["batch"]))
    onnx.save(model, folder / "model.onnx")
    engine = Engine(Graph(folder / "model.onnx"), Limits(outlier_score=30.0))
    bold = image_of(3)
    bold[400:500] = 60
    assert engine.predict([np.stack([image_of(3), bold])]).flags.tolist() == [0, LOW_CONFIDENCE]


def test_cost_curve_finds_the_best_batch():
    """The best batch is the smallest that comes within 5 % of the most images per second; gain compares it to one."""
    curve = CostCurve((1, 4, 16, 64), (10e-6, 20e-6, 50e-6, 199e-6))
    assert curve.best_batch_size() == 16
    assert curve.best_batch_size(within_s=30e-6) == 4
    assert curve.best_batch_size(within_s=1e-6) == 1
    assert curve.batching_gain == pytest.approx(3.2)
    assert curve(1) == pytest.approx(10e-6)
    assert curve(10) == pytest.approx(35e-6)
    assert curve(128) == pytest.approx(398e-6)


def test_measures_what_runs_cost(engine):
    """The measured curve has a positive time for each size, and stops at the budget of a run."""
    curve = engine.measure()
    assert curve.sizes[:7] == (1, 2, 4, 8, 16, 32, 64)
    assert len(curve.seconds) == len(curve.sizes)
    assert all(seconds < LATENCY_BUDGET_S / 2 for seconds in curve.seconds[:-1])
    assert all(seconds > 0 for seconds in curve.seconds)


def model_with(folder, **changes):
    """Write a toy model with another input or output and return its path."""
    path = write_package(folder / "toy" / "1") / "model.onnx"
    model = onnx.load(path)
    for field, infos in changes.items():
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(infos)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("shape", [["batch", 783], [1, 784], ["batch", 28, 28]])
def test_refuses_other_inputs(tmp_path, shape):
    """A model must take (any number, 784) floats; the refusal says what it takes instead."""
    path = model_with(tmp_path, input=[helper.make_tensor_value_info("vectors", TensorProto.FLOAT, shape)])
    with pytest.raises(ModelRefused, match=r"inputs are .*vectors|can't be loaded"):
        Engine(Graph(path))


def test_refuses_other_outputs(tmp_path):
    """A model must answer (any number, classes) floats; the refusal says what it answers instead."""
    path = write_package(tmp_path / "toy" / "1") / "model.onnx"
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Flatten", ["probabilities"], ["flat"], axis=0))
    model.graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["digits"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("digits", TensorProto.INT64, ["batch"]))
    onnx.save(model, path)
    with pytest.raises(ModelRefused, match=r"outputs are .*digits"):
        Engine(Graph(path))


def test_refuses_what_is_no_model(tmp_path):
    """Bytes that are no ONNX model are refused, not crashed on."""
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelRefused, match="can't be loaded"):
        Graph(tmp_path / "model.onnx")
