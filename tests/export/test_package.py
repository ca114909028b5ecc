"""A package trained here, on a small real sample, is all that a server may rely on."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from digits_export import convert, data, models, outlier, package


@pytest.fixture(scope="module")
def density(sample):
    """Return the outlier score that the small package was made with."""
    return outlier.fit(sample.held_out(0.1)[0].vectors)


@pytest.fixture(scope="module")
def opened(small_package):
    """Return the package's graph, open for inference."""
    return convert.session(small_package / "model.onnx")


def test_the_graph_takes_any_batch_of_vectors(opened):
    """The graph's only input is float32 `vectors` with a free batch axis, its outputs carry that axis on."""
    (vectors,) = opened.get_inputs()
    assert (vectors.name, vectors.type, vectors.shape) == ("vectors", "tensor(float)", ["batch", 784])
    assert [(o.name, o.shape) for o in opened.get_outputs()] == [
        ("probabilities", ["batch", 10]),
        ("outlier_score", ["batch"]),
    ]


def test_the_graph_holds_the_network_and_nothing_else(small_package):
    """No dropout, identity or other leftover of training stays in the graph: three layers, a softmax and the score."""
    kinds = [node.op_type for node in onnx.load(small_package / "model.onnx").graph.node]
    assert kinds[:9] == ["MatMul", "Add", "Relu", "MatMul", "Add", "Relu", "MatMul", "Add", "Softmax"]
    assert kinds[9:] == ["Reshape", "AveragePool", "Reshape", "MatMul", "Add", "Mul", "ReduceSum"]


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_keras_and_hdf5_and_onnx_agree(small_package, opened, sample, batch):
    """Both Keras files answer as the graph does, to 1e-5, whatever the batch."""
    import keras  # noqa: PLC0415

    vectors = sample.test.vectors[:batch]
    served = convert.run(opened, vectors)[0]
    for name in ("model.keras", "model.h5"):
        model = keras.models.load_model(small_package / name, compile=False)
        assert model.count_params() == 109_386
        assert np.abs(models.predict(model, vectors) - served).max() <= 1e-5


def test_reference_outputs_are_what_the_graph_gives(small_package, opened):
    """A server that loads the package gets Keras' own answers to the reference inputs, ten of each digit."""
    with np.load(small_package / "reference.npz") as stored:
        reference = dict(stored)
    assert (reference["inputs"].shape, reference["inputs"].dtype) == ((100, 784), np.uint8)
    assert (
        np.abs(convert.run(opened, data.to_vectors(reference["inputs"]))[0] - reference["probabilities"]).max() <= 1e-5
    )


def test_metadata_tells_the_server_what_it_needs(opened):
    """Labels, input range, temperature, thresholds, facts and the drift reference are in the file itself."""
    properties = package.read_properties(opened)
    assert set(properties) == {"labels", "input_range", "temperature", "abstain", "training", "reference"}
    assert properties["labels"] == list("0123456789")
    assert set(properties["abstain"]) == {"confidence", "outlier_score"}
    reference = properties["reference"]
    assert len(reference["pixel_mean"]) == 784
    assert len(reference["ink_histogram"]["edges"]) == len(reference["ink_histogram"]["shares"]) + 1
    assert sum(reference["class_shares"]) == pytest.approx(1, abs=1e-4)
    assert properties["training"]["data_sha256"] == data.SUMS
    # A wide margin below what one sees (0.91): the seed's luck on another machine must not fail this.
    assert properties["training"]["test_accuracy"] > 0.85


def test_the_abstain_thresholds_abstain_on_few_digits(opened, sample):
    """At most one in a hundred held-out digits is abstained on by the two rules together."""
    thresholds = package.Abstain(**package.read_properties(opened)["abstain"])
    _, validate = sample.held_out(0.1)
    assert thresholds.flags(*convert.run(opened, validate.vectors)).mean() <= 0.01


def test_a_graph_that_differs_from_keras_is_refused(small_package, small_recipe, sample, density):
    """Parity is checked, not assumed: one changed weight is found."""
    model = models.build(small_recipe.network)
    with pytest.raises(convert.ParityError, match=r"differs from Keras by .* at batch 1"):
        convert.check_parity(model, density, small_package / "model.onnx", sample.test.vectors)


@pytest.mark.parametrize("broken", [0, 1])
def test_answers_that_are_no_numbers_prove_nothing(small_package, small_recipe, sample, density, tmp_path, broken):
    """NaN on either side of a comparison is a difference: from the byte graph, and from Keras."""
    model = models.build(small_recipe.network)
    model.layers[-1].set_weights([weights * np.nan for weights in model.layers[-1].get_weights()])
    with pytest.raises(convert.ParityError, match="differs from Keras by nan at batch 1"):
        convert.check_parity(model, density, small_package / "model.onnx", sample.test.vectors)
    parts = [onnx.load(small_package / name) for name in ("model.onnx", "bytes.onnx")]
    for constant in parts[broken].graph.initializer:
        if constant.data_type == onnx.TensorProto.FLOAT and len(constant.dims) == 2:
            constant.CopyFrom(onnx.numpy_helper.from_array(np.full(constant.dims, np.nan, np.float32), constant.name))
    onnx.save(parts[broken], tmp_path / f"{broken}.onnx")
    files = [small_package / "model.onnx", small_package / "bytes.onnx"]
    files[broken] = tmp_path / f"{broken}.onnx"
    with pytest.raises(convert.ParityError, match=r"differs from .*\.onnx by nan at batch 1"):
        convert.check_bytes(*files, sample.test.images)


def test_no_file_keeps_the_optimizer(small_package):
    """The Keras files hold weights only: 109,386 floats and little else."""
    for name in ("model.keras", "model.h5", "model.onnx"):
        assert (small_package / name).stat().st_size < 109_386 * 4 * 1.2
    assert json.loads((small_package / "history.json").read_text())["curves"].keys() >= {"loss", "val_accuracy"}
