"""A table of model files, maker by maker: each is really made, imported by the command, served, and answers as before.

What `found` holds is what the command says that it found out; `--json` gives it. Files that need PyTorch or Keras 2 to
be made lie in `data/` with the scripts that made them, and with the answers that they gave there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from conftest import start_server, wait_until
from onnx import helper, numpy_helper
from packages import write_package

from digits_client import DigitClient
from digits_export.__main__ import cli
from digits_export.foreign import ForeignModelError

HERE = Path(__file__).parent / "data"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNIT = ("--scale", "1/255")
NORMALISED = (*UNIT, "--mean", "0.1307", "--std", "0.3081")


@dataclass(frozen=True)
class Original:
    """A model's file, and what it answers when its own maker runs it."""

    path: Path
    images: Any
    """(n, 784) uint8."""
    answers: Any
    """(n, classes) probabilities, scores or logits."""


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    make: Callable[[Path, Any], Original]
    """Makes it in a folder, to be asked of images (n, 784) uint8."""
    flags: tuple[str, ...]
    found: tuple[str, ...]
    """Parts of what is found of input and output."""
    tolerance: float = 1e-5
    labels: str = "0123456789"
    """Looked at if there are as many."""


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _as_probabilities(answers):
    """Return what anybody takes a model's answers for: logits where rows don't add up to 1."""
    if np.abs(answers.sum(axis=1) - 1).max() < 1e-3 and answers.min() >= 0:
        return answers
    return _softmax(answers.astype(np.float64))


# Keras 3


def _keras(shape, *names, file="model.keras", kind="float32", scale=1 / 255, batch=None):
    """Return a maker of a network of layers, by their names below, with weights large enough to tell images apart."""

    def make(folder, images):
        import keras  # noqa: PLC0415

        keras.utils.set_random_seed(1)
        wide = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.2)}
        layers = keras.layers
        known = {
            "flatten": layers.Flatten,
            "rescaling": lambda: layers.Rescaling(1 / 255),
            "centring": lambda: layers.Rescaling(1 / 127.5, offset=-1),
            "normalization": layers.Normalization,
            "conv": lambda: layers.Conv2D(4, 5, strides=3, activation="relu", **wide),
            "norm": layers.BatchNormalization,
            "dropout": lambda: layers.Dropout(0.3),
            "hidden": lambda: layers.Dense(16, activation="relu", **wide),
            "logits": lambda: layers.Dense(10, **wide),
            "softmax": lambda: layers.Dense(10, activation="softmax", **wide),
            "sigmoid": lambda: layers.Dense(10, activation="sigmoid", **wide),
        }
        asked = (images * scale).reshape(-1, *shape).astype(kind)
        given = keras.Input(batch_shape=(batch, *shape), dtype=kind)
        if file.startswith("functional"):
            tensor = given
            for name in names:
                tensor = known[name]()(tensor)
            model = keras.Model(given, tensor)
        else:
            model = keras.Sequential([given, *(known[name]() for name in names)])
        for layer in model.layers:
            if isinstance(layer, layers.Normalization):
                layer.adapt(asked)
            if isinstance(layer, layers.BatchNormalization):
                layer.set_weights([np.linspace(0.5, 1.5, size.shape[0]) for size in layer.get_weights()])
        path = folder / file
        model.save(path) if path.suffix else model.export(path, verbose=False)
        each = [asked] if batch is None else np.split(asked, len(asked))
        return Original(path, images, np.concatenate([np.asarray(model(one, training=False)) for one in each]))

    return make


def _tensorflow(folder, images):
    """Make a SavedModel without any Keras, whose signature is for one image."""
    import tensorflow as tf  # noqa: PLC0415, TID251

    weights = tf.constant(np.random.default_rng(2).normal(0, 0.1, (784, 10)).astype(np.float32))
    module = tf.Module()
    spec = tf.TensorSpec((1, 28, 28), tf.float32, "image")
    module.call = tf.function(
        lambda image: {"logits": tf.matmul(tf.reshape(image, (1, 784)), weights)}, input_signature=[spec]
    )
    tf.saved_model.save(module, str(folder / "saved"), signatures=module.call)
    return Original(folder / "saved", images, (images / np.float32(255)) @ weights.numpy())


# Files made elsewhere


def _made_before(file, answers):
    def make(folder, _images):
        with np.load(HERE / answers) as stored:
            return Original(Path(shutil.copy(HERE / file, folder)), stored["inputs"], stored["answers"])

    return make


# ONNX


def _run(path, asked, output=0):
    session = ort.InferenceSession(path)
    step = session.get_inputs()[0].shape[0]
    step = step if isinstance(step, int) else len(asked)
    blocks = [asked[start : start + step] for start in range(0, len(asked), step)]
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: block})[output] for block in blocks])


def _onnx(
    body, shape, *, classes=10, kind=np.float32, scale=1 / 255, opset=17, external=False, weights=None, inputs=False
):
    """Return a maker of a graph that says with `body` how images become (n, classes) answers."""

    def make(folder, images):
        number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        real = kind if np.issubdtype(kind, np.floating) else np.float32
        rng = np.random.default_rng(3)
        constants = {
            "w": (rng.normal(0, 0.1, (784, classes)) if weights is None else weights).astype(real),
            "b": rng.normal(0, 0.1, classes).astype(real),
            "kernel": rng.normal(0, 0.1, (classes, 1, 28, 28)).astype(real),
            "flat": np.array([shape[0] if isinstance(shape[0], int) else -1, 784]),
            "all": np.array(255, real),
        }
        graph = onnx.parser.parse_graph(f"g (float[n] x) => (float[n] y) {{ {body} }}")
        used = {name for node in graph.node for name in node.input}
        graph.initializer.extend(numpy_helper.from_array(constants[name], name) for name in sorted(used & {*constants}))
        graph.input[0].CopyFrom(helper.make_tensor_value_info("x", number, shape))
        answers = helper.np_dtype_to_tensor_dtype(np.dtype(real))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("y", answers, [shape[0], classes]))
        if inputs:  # as writers of the first years did
            graph.input.extend(
                helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in graph.initializer
            )
        ir = 3 if inputs else 8 if opset < 20 else 10
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
        path = folder / "model.onnx"
        onnx.save(proto, path, save_as_external_data=external, location="weights.bin", size_threshold=1024)
        asked = (images * scale).reshape(-1, *shape[1:]).astype(kind)
        return Original(path, images, _run(path, asked))

    return make


LINEAR = "flat_x = Reshape(x, flat) z = MatMul(flat_x, w) y = Add(z, b)"


# scikit-learn


def _sklearn(make_classifier, names=None, double=False, **options):
    """Return a maker of a classifier fitted to some images, as skl2onnx writes it."""

    def make(folder, images):
        from skl2onnx import to_onnx  # noqa: PLC0415
        from threadpoolctl import threadpool_limits  # noqa: PLC0415  (scikit-learn brings it)

        vectors = images.astype(np.float64 if double else np.float32) / 255
        labels = np.arange(len(images)) % (len(names) if names else 10)
        with threadpool_limits(1):
            classifier = make_classifier().fit(vectors, np.array(list(names))[labels] if names else labels)
        proto = to_onnx(classifier, vectors[:1], options={id(classifier): options} if options else None)
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return Original(path, images, classifier.predict_proba(vectors))

    return make


def _logistic():
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    return LogisticRegression(max_iter=30, C=10)


def _forest():
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415

    return RandomForestClassifier(10, random_state=0)


def _perceptron():
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415

    return MLPClassifier((16,), max_iter=200, tol=1e-2, random_state=0)


def _pipeline():
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    return make_pipeline(StandardScaler(), _logistic())


TOLD = "(as told)"
ITSELF = "pixels 0 ... 255 (the graph scales them itself)"
CASES = [
    Case("keras-mlp", _keras((784,), "hidden", "softmax"), UNIT, ("784 float32", TOLD, "probabilities of 10")),
    Case(
        "keras-functional",
        _keras((28, 28), "flatten", "hidden", "logits", file="functional.keras"),
        UNIT,
        ("28 x 28 float32", "logits of 10", "a softmax is added"),
    ),
    Case(
        "keras-cnn",
        _keras((28, 28, 1), "conv", "norm", "dropout", "flatten", "softmax"),
        UNIT,
        ("28 x 28 x 1 float32", "probabilities of 10"),
    ),
    Case(
        "keras-rescaling",
        _keras((28, 28), "rescaling", "flatten", "hidden", "softmax", scale=1),
        (),
        ("28 x 28 float32", ITSELF),
    ),
    Case(
        "keras-flatten-first",
        _keras((28, 28), "flatten", "centring", "hidden", "logits", scale=1),
        (),
        (ITSELF, "logits of 10"),
    ),
    Case("keras-normalization", _keras((28, 28, 1), "normalization", "conv", "flatten", "softmax"), UNIT, (TOLD,)),
    Case(
        "keras-uint8",
        _keras((28, 28), "rescaling", "flatten", "softmax", scale=1, kind="uint8"),
        (),
        ("28 x 28 uint8, pixels 0 ... 255 (by its type)",),
    ),
    Case("keras-batch-of-1", _keras((28, 28), "flatten", "softmax", batch=1), UNIT, ("28 x 28 float32",)),
    Case("keras-sigmoid", _keras((784,), "sigmoid"), UNIT, ("scores of 10", "divided by its sum")),
    Case(
        "keras-channels-first",
        _keras((1, 28, 28), "flatten", "hidden", "softmax"),
        UNIT,
        ("1 x 28 x 28 float32",),
    ),
    Case(
        "keras3-h5",
        _keras((28, 28, 1), "conv", "norm", "dropout", "flatten", "logits", file="functional.h5"),
        UNIT,
        ("28 x 28 x 1 float32", "logits of 10"),
    ),
    Case(
        "keras2-h5-sequential",
        _made_before("keras2-sequential.h5", "keras2-sequential.npz"),
        UNIT,
        ("28 x 28 float32", "probabilities of 10"),
    ),
    Case(
        "keras2-h5-functional",
        _made_before("keras2-functional.h5", "keras2-functional.npz"),
        UNIT,
        ("28 x 28 x 1 float32", "logits of 10"),
    ),
    Case(
        "savedmodel-keras",
        _keras((28, 28, 1), "rescaling", "conv", "flatten", "softmax", file="exported", scale=1),
        (),
        ("28 x 28 x 1 float32", ITSELF),
    ),
    Case("savedmodel-tensorflow", _tensorflow, UNIT, ("28 x 28 float32", "logits of 10")),
    Case(
        "torch-dynamo",
        _made_before("torch-dynamo.onnx", "torch.npz"),
        NORMALISED,
        ("1 x 28 x 28 float32", "logits of 10", "the graph ends with LogSoftmax"),
    ),
    Case(
        "torch-script-batch-of-1",
        _made_before("torch-script.onnx", "torch.npz"),
        NORMALISED,
        ("1 x 28 x 28 float32", "the graph ends with LogSoftmax"),
    ),
    Case("onnx-external-data", _onnx(LINEAR, ["n", 28, 28], external=True), UNIT, ("28 x 28 float32", "logits of 10")),
    Case("onnx-channels-first-batch-of-1", _onnx(LINEAR, [1, 1, 28, 28]), UNIT, ("1 x 28 x 28 float32",)),
    Case(
        "onnx-convolution-transposed-inside",
        _onnx(
            "first = Transpose<perm = [0, 3, 1, 2]>(x) wide = Conv(first, kernel, b) y = Flatten(wide)",
            ["n", 28, 28, 1],
        ),
        UNIT,
        ("28 x 28 x 1 float32", "logits of 10"),
    ),
    Case("onnx-opset-7", _onnx(LINEAR, ["n", 784], opset=7, inputs=True), UNIT, ("784 float32",)),
    Case("onnx-opset-22", _onnx(LINEAR, ["n", 784], opset=22), UNIT, ("784 float32",)),
    Case(
        "onnx-float16", _onnx(LINEAR, ["n", 1, 28, 28], kind=np.float16), UNIT, ("1 x 28 x 28",), tolerance=2e-3
    ),  # served in single precision
    Case("onnx-float64", _onnx(LINEAR, ["n", 784], kind=np.float64), UNIT, ("784 float64",)),
    Case(
        "onnx-uint8",
        _onnx(
            "real = Cast<to = 1>(x) unit = Div(real, all) flat_x = Reshape(unit, flat) z = MatMul(flat_x, w) "
            "y = Softmax(z)",
            ["n", 28, 28],
            kind=np.uint8,
            scale=1,
        ),
        (),
        ("28 x 28 uint8, pixels 0 ... 255 (by its type)", "probabilities of 10"),
    ),
    Case(
        "onnx-1000-classes",
        _onnx(LINEAR, ["n", 784], classes=1000),
        (*UNIT, "--labels", ",".join(f"word{number}" for number in range(1000))),
        ("logits of 1000",),
    ),
    Case("sklearn-logistic-26-letters", _sklearn(_logistic, LETTERS), UNIT, ("probabilities of 26",), labels=LETTERS),
    Case("sklearn-forest", _sklearn(_forest), UNIT, ("784 float32", "probabilities of 10")),
    Case("sklearn-mlp-without-zipmap", _sklearn(_perceptron, zipmap=False), UNIT, ("probabilities of 10",)),
    Case("sklearn-pipeline-float64", _sklearn(_pipeline, double=True), UNIT, ("784 float64", "probabilities of 10")),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that is up before any model is imported."""
    models = tmp_path_factory.mktemp("models")
    write_package(models / "toy" / "1")
    server = start_server(models, tmp_path_factory.mktemp("server"), "--reload-s=0.1")
    yield models, server.address
    assert server.stop() == 0


@pytest.fixture
def serve(server, tmp_path):
    """Return a function that imports a file by the command and waits until it is served; gives what was found."""
    models, address = server
    clients = []

    def imported(path, name, *flags):
        done = CliRunner().invoke(cli, ["import", str(path), "--name", name, "--out", str(models), "--json", *flags])
        assert done.exit_code == 0, done.exception or done.output
        known = {}
        client = DigitClient(address, model=name)
        clients.append(client)

        def is_known():
            known.update({model.name: model for model in client.models()})
            return known.get(name) and known[name].state != "loading"

        wait_until(is_known)
        assert (known[name].state, known[name].reason) == ("serving", "")
        return json.loads(done.stdout), known[name], client

    yield imported
    for client in clients:
        client.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings(
    "ignore:Stochastic Optimizer", "ignore:lbfgs failed to converge"
)  # stopped early on purpose
def test_it_is_imported_and_served_with_the_same_answers(case, serve, test_images, tmp_path):
    """What the command finds out is true: the server's probabilities are the original's, for bytes and for floats."""
    original = case.make(tmp_path, test_images.images[:130].reshape(-1, 784))
    found, model, client = serve(original.path, case.name, *case.flags)
    told = f"{found['input']}; {found['output']}"
    for part in case.found:
        assert part in told
    expected = _as_probabilities(original.answers)
    if "scores" in told:
        expected = original.answers / original.answers.sum(axis=1, keepdims=True)
    differences = []
    for images in (original.images, original.images / np.float32(255)):
        served = client.classify_many(images)
        differences.append(float(np.abs(served.probabilities - expected).max()))
    row = original.path.name, " ".join(case.flags)[:40], told, f"{max(differences):.0e}"
    print(" | ".join((case.name, *row)))  # noqa: T201 - the table: pytest -rP
    assert max(differences) <= case.tolerance
    assert served.classes == model.labels == tuple(found["labels"])
    assert len(case.labels) != len(model.labels) or "".join(model.labels) == case.labels
    assert len(set(served.labels)) > 2  # it tells images apart, so that equal answers mean something


def _quantized(folder, images):
    from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415

    whole = _onnx("y = MatMul(x, w)", ["n", 784])(folder, images).path
    quantize_dynamic(whole, folder / "quantized.onnx")
    return folder / "quantized.onnx"


def _with_code(folder, _images):
    import keras  # noqa: PLC0415

    layers = keras.layers
    keras.Sequential([keras.Input((784,)), layers.Lambda(lambda x: x / 255), layers.Dense(10)]).save(folder / "m.keras")
    return folder / "m.keras"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_quantized, "an image alone gets probabilities that differ by .* from those among others"),
        (_with_code, "can't be read as .keras: .*`Lambda` layer"),
    ],
)
def test_what_would_not_answer_the_same_is_refused(make, reason, tmp_path, test_images):
    """Answers that depend on an image's batch, and layers that are their maker's code, are named."""
    path = make(tmp_path, test_images.images[:130].reshape(-1, 784))
    done = CliRunner().invoke(cli, ["import", str(path), "--name", "m", "--out", str(tmp_path / "models"), *UNIT])
    assert isinstance(done.exception, ForeignModelError)
    assert re.search(reason, str(done.exception))
    assert not (tmp_path / "models" / "m" / "1").exists()
