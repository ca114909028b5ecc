"""Models of other makers become packages that answer as the originals do, or are refused in one line that says why."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from digits_export import adapt, convert, foreign, importer, package, report
from digits_export.__main__ import cli
from digits_export.labelled import Labelled, read_labelled

HERE = Path(__file__).parent / "data"
UNIT = adapt.SCALINGS[0]

_spec = importlib.util.spec_from_file_location("make_torch_onnx", HERE / "make_torch_onnx.py")
make_torch_onnx = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_torch_onnx)


@pytest.fixture
def labelled(test_images, monkeypatch):
    """Return 600 labelled images to measure by; their report's pictures, drawn in other tests, are left out."""
    monkeypatch.setattr(report, "write", lambda folder, *_args: report.write_card(folder))
    return Labelled("some", test_images.take(slice(0, 600)))


def _import(path, models, **told):
    found = importer.import_model(importer.Order(path, "mine", **told), models)
    folder = Path(found["package"])
    opened, properties = package.open_graph(folder)
    with np.load(folder / "reference.npz") as stored:
        reference = dict(stored)
    # Both graphs give the original's answers.
    vectors = reference["inputs"] / np.float32(255)
    assert np.abs(convert.run(opened, vectors)[0] - reference["probabilities"]).max() <= 1e-5
    derived = convert.session(folder / "bytes.onnx")
    assert np.abs(derived.run(None, {"pixels": reference["inputs"]})[2] - reference["probabilities"]).max() <= 1e-5
    return found, properties, reference, folder


@pytest.mark.parametrize("ending", ["LogSoftmax", "Softmax", ""])
def test_pytorchs_networks_answer_probabilities(tmp_path, ending, test_images):
    """NCHW images, log-probabilities, probabilities or logits: served are probabilities, equal to the original's."""
    path = tmp_path / "torch.onnx"
    make_torch_onnx.torch_like(path, batch="batch", ending=ending)
    found, _, reference, _ = _import(path, tmp_path / "models", scaling=UNIT)
    images = reference["inputs"].reshape(-1, 1, 28, 28).astype(np.float32) / 255
    raw = ort.InferenceSession(path).run(None, {"input.1": images})[0]
    expected = raw if ending == "Softmax" else np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    assert np.abs(reference["probabilities"] - expected).max() <= 1e-6
    assert found["output"].startswith("probabilities" if ending == "Softmax" else "logits")


def test_a_fixed_batch_is_freed_and_weights_in_another_file_are_taken_in(tmp_path):
    """A graph for one image, with weights beside it, becomes one file that takes any batch."""
    path = tmp_path / "torch.onnx"
    make_torch_onnx.torch_like(path, batch=1, external=True)
    _, _, _, folder = _import(path, tmp_path / "models", scaling=UNIT)
    assert convert.session(folder / "model.onnx").get_inputs()[0].shape == ["batch", 784]
    assert not list(folder.glob("*.data"))
    (tmp_path / "torch.onnx.data").unlink()
    with pytest.raises(foreign.ForeignModelError, match=r"keeps its weights in another file.*torch\.onnx\.data"):
        foreign.read(path)


@pytest.mark.parametrize("zipmap", [True, False])
def test_scikit_learns_classifiers_bring_their_labels(tmp_path, zipmap, test_images, labelled):
    """skl2onnx's label output is left out, its dictionaries become columns, its labels are the package's."""
    from skl2onnx import to_onnx  # noqa: PLC0415
    from sklearn.naive_bayes import GaussianNB  # noqa: PLC0415

    some = test_images.take(slice(1000, 3000))
    names = np.array(list("abcdefghij"))
    fitted = GaussianNB(var_smoothing=0.1).fit(some.vectors, names[some.labels])
    path = tmp_path / "skl.onnx"
    path.write_bytes(to_onnx(fitted, some.vectors[:1], options={"zipmap": zipmap}).SerializeToString())
    found, properties, _, _ = _import(path, tmp_path / "models", data=labelled)
    assert found["labels"] == properties["labels"] == list("abcdefghij")
    right = (fitted.predict(labelled.images.vectors) == names[labelled.images.labels]).mean()
    assert properties["training"]["test_accuracy"] == pytest.approx(right, abs=0.005)


@pytest.fixture(scope="module")
def keras_model(test_images):
    """Return a functional network for (28, 28, 1) images with layers as people use them, trained a little."""
    import keras  # noqa: PLC0415

    layers = keras.layers
    given = keras.Input((28, 28, 1))
    features = layers.Rescaling(1 / 255)(given)
    features = layers.Conv2D(4, 5, strides=4, activation="relu")(features)
    features = layers.Flatten()(layers.BatchNormalization()(features))
    answers = layers.Dense(10)(layers.Dropout(0.2)(features))
    return keras.Model(given, answers)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_kerass_files_are_read_by_keras(tmp_path, keras_model, name):
    """Both formats give a package whose reference outputs are Keras' own; its Rescaling tells the pixels' range."""
    path = tmp_path / name
    keras_model.save(path)
    found, properties, reference, _ = _import(path, tmp_path / "models")
    raw = np.asarray(keras_model(reference["inputs"].reshape(-1, 28, 28, 1).astype(np.float32), training=False))
    expected = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    assert np.abs(reference["probabilities"] - expected).max() <= 1e-5
    assert "28 x 28 x 1 float32, pixels 0 ... 255 (the graph scales them itself)" in found["input"]
    assert properties["source"]["reference_by"].startswith("keras ")


def test_a_saved_model_is_read_by_tensorflow(tmp_path, keras_model):
    """The folder that `model.export` writes is imported through its serving signature; its files have one sum."""
    keras_model.export(tmp_path / "saved", verbose=False)
    _, properties, _, _ = _import(tmp_path / "saved", tmp_path / "models")
    assert properties["source"]["reference_by"].startswith("tensorflow ")
    files = sorted(path for path in (tmp_path / "saved").rglob("*") if path.is_file())
    contents = b"".join(path.read_bytes() for path in files)
    assert properties["source"]["sha256"] == hashlib.sha256(contents).hexdigest()


def test_without_labelled_images_nothing_is_pretended(tmp_path):
    """No accuracy, threshold or drift reference is written, and the card says that they are unknown."""
    _, properties, _, folder = _import(HERE / "torch-dynamo.onnx", tmp_path, scaling=UNIT)
    assert set(properties) == {"labels", "input_range", "source"}
    assert "are unknown" in (folder / "README.md").read_text()
    assert not (folder / "report").exists()


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # stopped early on purpose
@pytest.mark.parametrize("scaling", adapt.SCALINGS[:4], ids=lambda scaling: scaling.name)
def test_the_pixels_range_is_found_by_labelled_images(tmp_path, test_images, labelled, scaling):
    """A linear classifier of images scaled any common way is fed as it was taught."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    some = test_images.take(slice(1000, 3000))
    taught = some.vectors * np.float32(scaling.factor) + np.float32(scaling.offset)
    centred = taught.mean()
    fitted = LogisticRegression(max_iter=30, C=10).fit((taught - centred) / scaling.factor, some.labels)
    weights = (fitted.coef_.T / scaling.factor).astype(np.float32)
    bias = (fitted.intercept_ - centred * weights.sum(axis=0)).astype(np.float32)
    path = tmp_path / "linear.onnx"
    onnx.save(_linear(weights, bias), path)
    found, _, _, _ = _import(path, tmp_path / "models", data=labelled)
    assert f"pixels {scaling.name} (of 6 ways tried" in found["input"]


def _linear(weights, bias, kind=onnx.TensorProto.FLOAT, shape=("n", 784)):
    graph = onnx.parser.parse_graph("g (float[n] x) => (float[n] y) { z = MatMul(x, w) y = Add(z, b) }")
    graph.initializer.extend([onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(bias, "b")])
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", kind, shape))
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", kind, ["n", weights.shape[1]]))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_a_thousand_classes_are_served_with_their_labels(tmp_path):
    """More classes than a byte can number: the byte graph's answers are 16 bits wide."""
    rng = np.random.default_rng(0)
    onnx.save(
        _linear(rng.normal(0, 1, (784, 1000)).astype(np.float32), np.zeros(1000, np.float32)), tmp_path / "m.onnx"
    )
    labels = tuple(f"word{number}" for number in range(1000))
    _, properties, reference, folder = _import(tmp_path / "m.onnx", tmp_path / "models", scaling=UNIT, labels=labels)
    digits = convert.session(folder / "bytes.onnx").run(["digits"], {"pixels": reference["inputs"]})[0]
    assert digits.dtype == np.uint16
    assert np.array_equal(digits, reference["probabilities"].argmax(axis=1))
    assert properties["labels"][999] == "word999"


def test_a_report_of_mnist_is_refused_where_other_images_were_measured(tmp_path, labelled):
    """What a package says of its own images stays: figures of digits don't take the place of those."""
    found, *_ = _import(HERE / "torch-dynamo.onnx", tmp_path / "models", scaling=UNIT, data=labelled)
    card = Path(found["package"]) / "README.md"
    written = card.read_bytes()
    for name in ("report", "evaluate"):
        done = CliRunner().invoke(cli, [name, found["package"]])
        assert isinstance(done.exception, package.PackageError)
        assert "has 10 classes and was measured on some, allowed: digits and MNIST" in str(done.exception)
    assert card.read_bytes() == written


@pytest.fixture
def command(tmp_path):
    """Return a function that imports by the command and gives its exit code and its last line of errors."""

    def run(*arguments):
        done = CliRunner().invoke(cli, ["import", *map(str, arguments), "--out", str(tmp_path / "models")])
        return done, str(done.exception or done.stderr)

    return run


@pytest.mark.parametrize(
    ("weights", "shape", "told", "message"),
    [
        ((784, 10), ("n", 784), (), "which range its pixels have can't be told"),
        ((100, 10), ("n", 100), ("--scale", "1"), r"input 'x' has shape \(n, 100\), allowed: \(n, 784\)"),
        ((784, 1), ("n", 784), ("--scale", "1"), r"answers to 100 images have shape \(100, 1\)"),
        ((784, 10), ("n", 784), ("--scale", "1", "--labels", "a,b"), "there are 2 labels, allowed: 10"),
        ((784, 2), ("n", 784), ("--scale", "1", "--labels", "a,a"), "label 'a' is there twice"),
        ((784, 2), ("n", 784), ("--scale", "1", "--labels", "no.txt"), "labels are 'no.txt', allowed: a,b,c or a file"),
        ((784, 10), ("n", 784), ("--data", "none.npz"), "data is 'none.npz', allowed: mnist, or an .npz file"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(tmp_path, command, weights, shape, told, message):
    """Faults of the file and of what is said of it are one line, and nothing is written."""
    path = tmp_path / "m.onnx"
    onnx.save(_linear(np.ones(weights, np.float32), np.zeros(weights[1], np.float32), shape=shape), path)
    done, error = command(path, "--name", "mine", *told)
    assert isinstance(done.exception, foreign.ForeignModelError)
    assert re.search(message, error)
    assert not list((tmp_path / "models").glob("**/model.onnx"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.pt", "is a .pt file, allowed: .keras, .h5.*torch.onnx.export"),
        ("m.pkl", "is a .pkl file.*skl2onnx"),
        ("m.onnx", "can't be read as .onnx"),
        ("m.keras", "is no .keras file: those are zip files"),
        ("m.h5", "can't be read as .h5"),
        ("empty.onnx", "is empty"),
        ("empty.keras", "is empty"),
        ("folder", "is a folder without saved_model.pb"),
    ],
)
def test_files_that_are_no_models_are_refused_with_the_remedy(tmp_path, name, message):
    """A file of another format, or a damaged one, is named with what could be done."""
    (tmp_path / "folder").mkdir()
    for other in ("m.pt", "m.pkl", "m.onnx", "m.keras", "m.h5", "empty.onnx", "empty.keras"):
        (tmp_path / other).write_bytes(b"" if "empty" in other else b"no model")
    with pytest.raises(foreign.ForeignModelError, match=message):
        foreign.read(tmp_path / name)


def test_a_model_that_answers_no_numbers_is_refused(tmp_path, labelled):
    """Spoilt weights are named as such before a LogSoftmax, too, where every scaling does equally badly."""
    proto = onnx.load(HERE / "torch-dynamo.onnx")
    for constant in proto.graph.initializer:
        if constant.data_type == onnx.TensorProto.FLOAT:
            constant.CopyFrom(onnx.numpy_helper.from_array(np.full(constant.dims, np.nan, np.float32), constant.name))
    onnx.save(proto, tmp_path / "m.onnx")
    for told in ({"data": labelled}, {"scaling": UNIT}):
        with pytest.raises(foreign.ForeignModelError, match="its answers are nan, allowed: finite numbers"):
            importer.import_model(importer.Order(tmp_path / "m.onnx", "mine", **told), tmp_path / "models")


def test_versions_are_counted_up_and_never_overwritten(tmp_path, command):
    """The next free version is taken; one that is there is refused by name."""
    model = shutil.copy(HERE / "torch-dynamo.onnx", tmp_path / "m.onnx")
    done, _ = command(model, "--name", "mine", "--scale", "1/255", "--json")
    assert Path(json.loads(done.stdout)["package"]).parts[-2:] == ("mine", "1")
    done, _ = command(model, "--name", "mine", "--scale", "1/255", "--json")
    assert Path(json.loads(done.stdout)["package"]).name == "2"
    _, error = command(model, "--name", "mine", "--scale", "1/255", "--version", "2")
    assert "is there; name another --version" in error
    _, error = command(model, "--name", "../mine", "--scale", "1/255")
    assert "name is '../mine', allowed: letters" in error


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3.7, 1], "has the label 3.7, allowed: whole numbers"),
        ([0, np.nan, 1], "has the label nan, allowed: whole numbers"),
        (["a", "b", "c"], r"and labels <U1 \(3,\), allowed: uint8 \(n, 28, 28\) and integers \(n,\)"),
        (3, r"and labels int64 \(\), allowed"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, labels, message):
    """A label is taken as it stands or named, never cut to a whole number."""
    np.savez(tmp_path / "own.npz", images=np.zeros((3, 28, 28), np.uint8), labels=np.array(labels))
    with pytest.raises(foreign.ForeignModelError, match=rf"own\.npz {message}|own\.npz has images.*{message}"):
        read_labelled(str(tmp_path / "own.npz"), tmp_path)


@pytest.mark.parametrize("kind", [float, bool, np.uint8])
def test_whole_labels_of_any_type_are_taken(tmp_path, kind):
    """Whole numbers written as floats are the labels that they say."""
    np.savez(tmp_path / "own.npz", images=np.zeros((3, 28, 28), np.uint8), labels=np.array([0, 1, 1], kind))
    assert read_labelled(str(tmp_path / "own.npz"), tmp_path).images.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_cut_off_file_of_labelled_images_is_named(tmp_path, test_images, share):
    """However much of the file there is, one line names it and what is allowed."""
    path = tmp_path / "own.npz"
    np.savez_compressed(path, images=test_images.images[:50], labels=test_images.labels[:50])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        foreign.ForeignModelError, match=r"data is '.*own\.npz', allowed: mnist, or an \.npz file \(.+\)$"
    ):
        read_labelled(str(path), tmp_path)


def test_spoilt_bytes_within_a_file_of_labelled_images_are_named(tmp_path, test_images):
    """A file whose directory is whole and whose arrays are not is refused in the same line."""
    path = tmp_path / "own.npz"
    np.savez_compressed(path, images=test_images.images[:50], labels=test_images.labels[:50])
    raw = bytearray(path.read_bytes())
    raw[200:300] = b"\xff" * 100
    path.write_bytes(raw)
    with pytest.raises(foreign.ForeignModelError, match=r"data is '.*own\.npz', allowed"):
        read_labelled(str(path), tmp_path)
