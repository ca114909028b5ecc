"""The packages in `models/` keep what their cards promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from digits_export import calibration, convert, data, models, package, recipe

MODELS = Path(__file__).parents[2] / "models"
PROMISED = {"digits-mlp/3": 0.9943, "digits-cnn/3": 0.9966}  # test accuracy
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@pytest.fixture(scope="module", params=sorted(PROMISED))
def shipped(request):
    """Return the name of a shipped package."""
    return request.param


@pytest.fixture(scope="module")
def opened(shipped):
    """Return its graph, open for inference."""
    return convert.session(MODELS / shipped / "model.onnx")


@pytest.fixture(scope="module")
def answers(opened, test_images):
    """Return its probabilities and outlier scores for the 10,000 test images."""
    return convert.run(opened, test_images.vectors)


def test_it_reaches_its_promised_accuracy(shipped, opened, answers, test_images):
    """The served file answers the test images as well as promised, and exactly as well as its metadata says."""
    accuracy = (answers[0].argmax(axis=1) == test_images.labels).mean()
    # Another CPU sums in another order: one image on the fence may fall to the other side.
    assert accuracy >= PROMISED[shipped] - 1.5e-4
    assert accuracy == pytest.approx(package.read_properties(opened)["training"]["test_accuracy"], abs=1.5e-4)


def test_its_probabilities_can_be_believed(answers, test_images):
    """The expected calibration error on the test images is at most 0.31 %."""
    assert calibration.expected_calibration_error(answers[0], test_images.labels) <= 0.0031


def test_it_abstains_on_few_digits(opened, answers):
    """At most one test digit in a hundred is abstained on, and thresholds are those in the file."""
    thresholds = package.Abstain(**package.read_properties(opened)["abstain"])
    assert thresholds.flags(*answers).mean() <= 0.01


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_it_abstains_on_most_of_what_is_no_digit(opened):
    """It abstains on at least nine in ten images of clothes."""
    clothes = data.to_vectors(data.parse_images(data.read_idx_bytes(FASHION, "t10k-images-idx3-ubyte")))
    thresholds = package.Abstain(**package.read_properties(opened)["abstain"])
    assert thresholds.flags(*convert.run(opened, clothes)).mean() >= 0.9


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_all_its_files_answer_alike(shipped, opened, test_images, batch):
    """Keras' own file, HDF5 and ONNX give the same probabilities to 1e-5."""
    import keras  # noqa: PLC0415

    vectors = test_images.vectors[-batch:]
    served = convert.run(opened, vectors)[0]
    for name in ("model.keras", "model.h5"):
        model = keras.models.load_model(MODELS / shipped / name, compile=False)
        assert np.abs(models.predict(model, vectors) - served).max() <= 1e-5


def test_its_reference_outputs_hold(shipped, opened):
    """The reference inputs get the reference outputs."""
    with np.load(MODELS / shipped / "reference.npz") as reference:
        answered = convert.run(opened, data.to_vectors(reference["inputs"]))[0]
        assert np.abs(answered - reference["probabilities"]).max() <= 1e-5


def test_its_recipe_is_in_the_library(shipped, opened):
    """The recipe that made it exists, has its name, and builds a network of as many parameters."""
    facts = package.read_properties(opened)["training"]
    assert facts["recipe"] == shipped.split("/")[0]
    assert models.build(recipe.load(facts["recipe"]).network).count_params() == facts["parameters"]
    assert recipe.load(facts["recipe"]).fit.epochs == facts["epochs"]


def test_its_graph_is_minimal_and_small(shipped):
    """The checker passes it, its opset is stated, nothing idle is in it, and every file of the package is small."""
    graph = onnx.load(MODELS / shipped / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", convert.OPSET)]
    idle = {"Identity", "Dropout", "BatchNormalization", "Cast", "Shape"}
    assert not idle & {node.op_type for node in graph.graph.node}
    assert (MODELS / shipped / "model.onnx").stat().st_size < 1.5e6
    files = [path for path in (MODELS / shipped).rglob("*") if ".training" not in path.parts]
    assert all(path.stat().st_size < 2e6 for path in files)
