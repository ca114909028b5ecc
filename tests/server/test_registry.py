"""Which packages are served, and which are refused for what."""

import re
import shutil

import numpy as np
import onnx
import pytest
from packages import image_of, write_byte_graph, write_package

from digits.v1 import classifier_pb2 as pb
from digits_server.api import messages as converters
from digits_server.api import tensors
from digits_server.errors import Draining, ModelRefused, NotFound
from digits_server.inference.batcher import Batcher
from digits_server.inference.engine import Engine
from digits_server.models.package import Key, load
from digits_server.models.registry import Registry, ServedModel
from digits_server.models.repository import Repository
from open_inference.v2 import inference_pb2


async def registry_of(root, default="toy-b"):
    def make(package):
        return ServedModel(package, Batcher(package.engine.predict, max_batch_size=8, max_queue=8))

    async def on_change():
        pass

    registry = Registry(default, make)
    await Repository(root, registry, threads=1, every_s=0, on_change=on_change).poll(is_told=True)
    registry.settle_default(root)
    return registry


async def test_requests_mean_the_default_model_and_the_latest_version(toy_models):
    """No name means the default model, no version the highest one."""
    registry = await registry_of(toy_models)
    names = [(m.package.name, m.package.version) for m in (registry.get(), registry.get("toy-a"))]
    assert names == [("toy-b", "1"), ("toy-a", "2")]
    assert registry.get("toy-a", "1").package.version == "1"


async def test_latest_is_the_highest_number(tmp_path):
    """Versions are numbers: 10 comes after 9."""
    for version in ("9", "10"):
        write_package(tmp_path / "toy" / version)
    assert (await registry_of(tmp_path)).get().package.version == "10"


async def test_unknown_models_and_versions_are_not_found(toy_models):
    """The error names what was asked for and what there is."""
    registry = await registry_of(toy_models)
    with pytest.raises(NotFound, match=r"model: 'toy' is not served; there are \['toy-a', 'toy-b'\]"):
        registry.get("toy")
    for version in ("3", "x", "-1", "../1"):
        with pytest.raises(NotFound, match=r"toy-a has no version .*; there are \['1', '2'\]"):
            registry.get("toy-a", version)


async def test_single_model_is_the_default(tmp_path):
    """Where there is one model, nobody needs to name it."""
    write_package(tmp_path / "mine" / "1")
    assert (await registry_of(tmp_path, default="digits-mlp")).get().package.name == "mine"


async def test_broken_package_is_refused_and_the_rest_served(tmp_path):
    """A package that fails verification is listed with the reason; the version before it goes on serving."""
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "toy" / "2", reference_error=0.01)
    registry = await registry_of(tmp_path)
    assert registry.get().package.version == "1"
    assert list(registry.faults) == [("toy", "2")]
    assert registry.notes[Key("toy", 2)].reason.startswith("answers differ from the reference outputs by 0.01")


async def test_list_tells_who_serves_and_who_was_refused(tmp_path):
    """ListModels shows a refused version beside the one that serves, with the reason."""
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "toy" / "2", reference_error=0.01)
    serving, refused = converters.models(await registry_of(tmp_path)).models
    assert (serving.version, serving.state, serving.is_default) == ("1", pb.MODEL_STATE_SERVING, True)
    assert (refused.version, refused.state, refused.is_default) == ("2", pb.MODEL_STATE_REFUSED, False)
    assert "reference outputs" in refused.reason


async def test_nothing_to_serve_is_an_error(tmp_path):
    """A folder without a servable model is said so, by name, with why what is there does not serve."""
    with pytest.raises(ModelRefused, match="holds no model that can be served"):
        await registry_of(tmp_path)
    write_package(tmp_path / "toy" / "1", reference_error=0.01)
    write_package(tmp_path / "mine" / "v1")
    with pytest.raises(
        ModelRefused, match=r"toy/1 was refused: answers differ .*; mine/v1 was refused: 'v1' is no version"
    ):
        await registry_of(tmp_path)


async def test_missing_default_is_an_error(toy_models):
    """A default model that does not exist is said so, with those that do."""
    with pytest.raises(ModelRefused, match=r"default model 'digits' is not among \['toy-a', 'toy-b'\]"):
        await registry_of(toy_models, default="digits")


async def test_close_fails_later_requests(toy_models):
    """After close every model answers that the server is going away."""
    registry = await registry_of(toy_models)
    registry.close()
    for model in registry.all():
        with pytest.raises(Draining):
            await model.batcher.submit(image_of(1)[np.newaxis])


def spoil(name):
    def write(folder):
        (folder / name).write_bytes(b"")

    return write


def reference(**arrays):
    def write(folder):
        with np.load(folder / "reference.npz") as old:
            np.savez(folder / "reference.npz", **{**old, **arrays})

    return write


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (spoil("model.onnx"), "can't be loaded"),
        (spoil("reference.npz"), "reference.npz can't be read"),
        (lambda folder: (folder / "reference.npz").unlink(), "reference.npz is missing"),
        (reference(probabilities=np.full((10, 10), np.nan, np.float32)), "differ from the reference outputs by nan"),
        (reference(inputs=np.zeros((10, 783), np.uint8)), r"inputs uint8 \(10, 783\)"),
        (reference(probabilities=np.zeros((10, 9), np.float32)), "reference outputs have 9 classes, model.onnx has 10"),
    ],
)
def test_damaged_packages_are_refused(tmp_path, damage, reason):
    """Whatever is missing or wrong in a package that `digits-export` has made is named."""
    folder = write_package(tmp_path / "toy" / "1")
    damage(folder)
    with pytest.raises(ModelRefused, match=reason):
        load(tmp_path, Key("toy", 1), threads=1)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"digits.labels": "["}, r"digits.labels is '\[', no JSON .*; allowed is a JSON list"),
        ({"digits.labels": None}, "no metadata digits.labels: a JSON list of the classes' names"),
        ({"digits.labels": "[]"}, r"digits.labels is \[\]; allowed are 1 to 65,536 strings"),
        ({"digits.labels": '["a", "b"]'}, r"answers \(28, 10\) to 28 images; digits.labels names 2 classes"),
        ({"digits.input_range": "[0, 255]"}, r"digits.input_range is \[0, 255\]; allowed is \[0, 1\]"),
        ({"digits.abstain": '{"confidence": 5}'}, "confidence is 5; allowed is a number from 0 to 1"),
        ({"digits.training": "[]"}, r"digits.training is \[\]; allowed is a JSON object"),
        ({"digits.training": '{"test_accuracy": "good"}'}, "test_accuracy is 'good'; allowed is a number from 0 to 1"),
        ({"digits.training": '{"dataset": 3}'}, "dataset is 3; allowed is a string"),
        ({"digits.reference": "3"}, "digits.reference is 3; allowed is a JSON object"),
        (
            {"digits.reference": '{"ink_histogram": {"edges": [1]}}'},
            "ink_histogram is .* ascending numbers, at least two",
        ),
        (
            {"digits.reference": '{"ink_histogram": {"edges": [0, 1], "shares": [1, 2]}}'},
            "ink_histogram is .* whose shares are one fewer",
        ),
        ({"digits.reference": '{"class_shares": [1]}'}, r"class_shares is \[1\]; allowed is a list of 10 numbers"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path, metadata, reason):
    """Metadata that serving can't use is a reason to refuse, with what was found and what is allowed."""
    write_package(tmp_path / "toy" / "1", metadata=metadata)
    with pytest.raises(ModelRefused, match=reason):
        load(tmp_path, Key("toy", 1), threads=1)


def test_all_faults_are_named_at_once(tmp_path):
    """Whoever mends a package learns everything that is wrong with it from one message."""
    folder = write_package(
        tmp_path / "toy" / "1",
        gives_logits=True,
        metadata={"digits.labels": None, "digits.abstain": "?", "digits.training": "{}"},
    )
    (folder / "reference.npz").write_bytes(b"")
    with pytest.raises(ModelRefused) as refusal:
        load(tmp_path, Key("toy", 1), threads=1)
    for fault in ("reference.npz can't be read", "digits.labels", "digits.abstain", "gives no probabilities"):
        assert fault in str(refusal.value)


def test_whatever_a_package_raises_is_a_refusal(tmp_path, monkeypatch):
    """A fault that nobody has thought of refuses the package and stops nothing else."""
    write_package(tmp_path / "toy" / "1")
    monkeypatch.setattr(Engine, "measure", lambda *_: 1 / 0)
    with pytest.raises(ModelRefused, match="package can't be read: ZeroDivisionError"):
        load(tmp_path, Key("toy", 1), threads=1)


def test_metadata_other_than_labels_is_optional(tmp_path):
    """What a model does not say is unknown: no accuracy, and no image is flagged by thresholds of nobody's."""
    names = ("digits.abstain", "digits.reference", "digits.training")
    write_package(tmp_path / "toy" / "1", sharpness=0.1, metadata=dict.fromkeys(names))
    package = load(tmp_path, Key("toy", 1), threads=1)
    assert (package.test_accuracy, package.dataset) == (0.0, "")
    assert package.remark == ""
    assert package.engine.predict([image_of(3)[np.newaxis]]).flags.tolist() == [0]


def test_older_name_of_the_reference_outputs(tmp_path):
    """Packages of before call them golden.npz: they verify the model as well."""
    folder = write_package(tmp_path / "toy" / "1", reference_error=0.01)
    (folder / "reference.npz").rename(folder / "golden.npz")
    with pytest.raises(ModelRefused, match=r"differ from the reference outputs by 0.01"):
        load(tmp_path, Key("toy", 1), threads=1)


def test_logits_are_never_served_as_probabilities(tmp_path):
    """A model without its softmax is refused, even if its reference outputs agree, and the remedy is named."""
    write_package(tmp_path / "toy" / "1", gives_logits=True)
    with pytest.raises(ModelRefused, match=r"values from 0 to 10, .* `digits-export import` adds the softmax"):
        load(tmp_path, Key("toy", 1), threads=1)


def test_model_that_takes_one_image_at_a_time_is_refused(tmp_path):
    """A graph that says it takes any number of images, and does not, is found out before anybody asks it."""
    path = write_package(tmp_path / "toy" / "1") / "model.onnx"
    model = onnx.load(path)
    shape = onnx.numpy_helper.from_array(np.array([1, 784]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["vectors", "shape"], ["one"]))
    model.graph.node[1].input[0] = "one"
    onnx.save(model, path)
    with pytest.raises(ModelRefused, match=r"model.onnx fails on 28 images"):
        load(tmp_path, Key("toy", 1), threads=1)


async def test_a_thousand_classes(tmp_path):
    """Any number of classes is served: indices beyond a byte come through whole."""
    write_package(tmp_path / "toy" / "1", labels=[f"class {number}" for number in range(1000)])
    model = (await registry_of(tmp_path)).get()
    images = np.stack([image_of(digit) for digit in (3, 299, 777)])
    images[:, 300:400] = 0
    (outcome,) = await model.batcher.submit(images)
    assert outcome.answers.digits.tolist() == [3, 299, 777]
    request = pb.ClassifyRequest(pixels=images.tobytes(), top_k=1)
    answer = pb.ClassifyResponse.FromString(converters.response(request, model, outcome).SerializeToString())
    assert list(answer.digits) == list(answer.top_digits) == [3, 299, 777]
    assert len(answer.probabilities) == 3000
    tensor = tensors.response(inference_pb2.ModelInferRequest(raw_input_contents=[b""]), ["digits"], model, outcome)
    assert tensor.outputs[0].datatype == tensors.metadata(model, ["1"]).outputs[1].datatype == "UINT16"
    assert np.frombuffer(tensor.raw_output_contents[0], np.uint16).tolist() == [3, 299, 777]


def test_byte_graph_answers_bytes(tmp_path):
    """A package with a byte graph that agrees with its float graph serves both, and has nothing to remark."""
    write_byte_graph(write_package(tmp_path / "toy" / "1"))
    package = load(tmp_path, Key("toy", 1), threads=1)
    assert package.remark == ""
    assert package.engine.has_byte_graph


def spoil_bytes(folder):
    write_byte_graph(folder)
    (folder / "bytes.onnx").write_bytes(b"no graph")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda folder: write_byte_graph(folder, sharpness=9.9), "probabilities differ from those of model.onnx by"),
        (lambda folder: write_byte_graph(folder, confidence=0.9999), "flags differ from those of model.onnx"),
        (lambda folder: write_byte_graph(folder, ink_range=(0.05, 0.42)), "flags differ from those of model.onnx"),
        (lambda folder: write_byte_graph(folder, derived_from="else"), "derived from another model.onnx"),
        (spoil_bytes, "bytes.onnx can't be loaded"),
        (lambda folder: shutil.copy(folder / "model.onnx", folder / "bytes.onnx"), "derived from another model.onnx"),
    ],
)
def test_byte_graph_that_can_not_be_trusted_is_not_used(tmp_path, write, reason):
    """The float graph answers all and the package says why, as it would where a processor's kernels saturate."""
    write(write_package(tmp_path / "toy" / "1"))
    package = load(tmp_path, Key("toy", 1), threads=1)
    assert package.remark.startswith("bytes.onnx is not used: ")
    assert re.search(reason, package.remark)
    assert not package.engine.has_byte_graph
    assert package.engine.predict([image_of(3)[np.newaxis]]).digits.tolist() == [3]
