"""Models of other makers, read from their files: an ONNX graph, and the original to compare it with."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from digits_export.convert import OPSET, from_function, session
from digits_export.data import Fault, one_line

ALLOWED = ".keras, .h5, .hdf5, .onnx, or the folder of a SavedModel"
REMEDIES = {
    ".pt": "PyTorch's own format holds no graph: write it with torch.onnx.export(model, example, 'model.onnx')",
    ".pth": "PyTorch's own format holds no graph: write it with torch.onnx.export(model, example, 'model.onnx')",
    ".pkl": "a pickle runs code when it is read: write the model with skl2onnx.to_onnx(model, example)",
    ".joblib": "a pickle runs code when it is read: write the model with skl2onnx.to_onnx(model, example)",
    ".tflite": "write the model before its conversion to TensorFlow Lite: model.save('model.keras')",
    ".pb": "name the folder of the SavedModel, not the file in it",
}


class ForeignModelError(Fault):
    """A file that can't be imported: the message names what was found and what is allowed."""


@dataclass
class ForeignModel:
    """A classifier as its maker wrote it."""

    proto: onnx.ModelProto
    """The ONNX model."""
    maker: str
    """What answers for the original: a framework with its version."""
    answer: Callable[[Any], Any]
    """Returns the original's (n, classes) answers to n images, shaped and scaled as it wants them."""
    labels: list[str] = field(default_factory=list)
    """Labels that the file itself names."""


def read(path: Path) -> ForeignModel:
    """Read a model's file, or the folder of a SavedModel.

    Raises:
        ForeignModelError: It is none, is damaged, or needs code of its maker's.
    """
    kind = path.suffix.lower()
    readers = {".keras": _keras, ".h5": _keras, ".hdf5": _keras, ".onnx": _onnx}
    reader = _saved_model if path.is_dir() else readers.get(kind)
    if reader is None:
        raise ForeignModelError(f"{path} is a {kind or 'nameless'} file, allowed: {ALLOWED}. {REMEDIES.get(kind, '')}")
    if path.is_file() and not path.stat().st_size:
        raise ForeignModelError(f"{path} is empty")
    if kind == ".keras" and not zipfile.is_zipfile(path):  # of which Keras says that it is not found
        raise ForeignModelError(f"{path} is no .keras file: those are zip files")
    try:
        with _quiet():
            model = reader(path)
        onnx.checker.check_model(model.proto)
    except ForeignModelError:
        raise
    except Exception as error:  # what a damaged file raises differs from framework to framework
        raise ForeignModelError(f"{path} can't be read as {kind or 'a SavedModel'}: {one_line(error)}") from error
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what frameworks tell the makers of models: greetings, and advice to write them otherwise."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


def _keras(path: Path) -> ForeignModel:
    import keras  # noqa: PLC0415

    logging.getLogger("absl").setLevel(logging.ERROR)
    model = keras.models.load_model(path, compile=False)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ForeignModelError(
            f"{path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs, allowed: one of each"
        )
    (given,) = model.inputs

    def call(images: Any) -> Any:
        with _quiet():
            return model(images, training=False)

    proto = from_function(call, given.shape, given.dtype)
    return ForeignModel(proto, f"keras {version('keras')}", _in_blocks(call, given.shape[0]))


def _saved_model(path: Path) -> ForeignModel:
    import tensorflow as tf  # noqa: PLC0415, TID251

    if not (path / "saved_model.pb").is_file():
        raise ForeignModelError(f"{path} is a folder without saved_model.pb, allowed: {ALLOWED}")
    loaded = tf.saved_model.load(str(path))
    if "serving_default" not in loaded.signatures:
        raise ForeignModelError(f"{path} has signatures {sorted(loaded.signatures)}, allowed: serving_default")
    serve = loaded.signatures["serving_default"]
    inputs = serve.structured_input_signature[1]
    if len(inputs) != 1 or len(serve.structured_outputs) != 1:
        raise ForeignModelError(
            f"{path} takes {sorted(inputs)} and gives {sorted(serve.structured_outputs)}, allowed: one of each"
        )
    ((name, given),), (output,) = inputs.items(), serve.structured_outputs

    def call(x: Any) -> Any:
        return serve(**{name: x})[output]

    proto = from_function(call, given.shape, given.dtype)
    answer = _in_blocks(lambda images: call(tf.constant(images)), given.shape[0])
    return ForeignModel(proto, f"tensorflow {tf.__version__}", answer)


def _in_blocks(call: Callable[[Any], Any], batch: Any) -> Callable[[Any], Any]:
    """Return a function of any number of images from one that takes so many at once, if `batch` is a number."""
    step = batch if isinstance(batch, int) else 1000

    def answer(images: Any) -> Any:
        blocks = [images[start : start + step] for start in range(0, len(images), step)]
        return np.concatenate([np.asarray(call(block)) for block in blocks])

    return answer


def _onnx(path: Path) -> ForeignModel:
    try:
        proto = onnx.load(path)
    except (FileNotFoundError, onnx.checker.ValidationError) as error:
        raise ForeignModelError(
            f"{path} keeps its weights in another file, which must lie beside it under its own name: {error}"
        ) from error
    constants = {constant.name for constant in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ForeignModelError(f"{path} has inputs {[value.name for value in inputs]}, allowed: one")
    del proto.graph.input[:]
    proto.graph.input.append(inputs[0])
    labels = _take_out_maps(proto.graph)
    _keep_answers(proto.graph, path)
    proto = _upgrade(proto)
    _widen(proto.graph)

    opened = session(proto.SerializeToString())
    answer = _in_blocks(lambda images: opened.run(None, {inputs[0].name: images})[0], opened.get_inputs()[0].shape[0])
    return ForeignModel(proto, f"onnxruntime {version('onnxruntime')}", answer, labels)


def _take_out_maps(graph: onnx.GraphProto) -> list[str]:
    """Have skl2onnx's classifiers answer tensors instead of dictionaries; return the labels that their nodes name."""
    constants = {constant.name: constant for constant in graph.initializer}
    labels: list[str] = []
    for node in list(graph.node):
        if node.op_type == "ArrayFeatureExtractor" and node.input[0] in constants:  # picks the label by its number
            values = onnx.numpy_helper.to_array(constants[node.input[0]]).ravel().tolist()
            labels = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
        for entry in node.attribute:
            if entry.name in {"classlabels_int64s", "classlabels_ints"}:
                labels = [str(value) for value in entry.ints] or labels
            if entry.name in {"classlabels_strings", "classlabels_string"}:
                labels = [value.decode() for value in entry.strings] or labels
        if node.op_type == "ZipMap":
            graph.node.remove(node)
            for output in list(graph.output):
                if output.name == node.output[0]:
                    kind = output.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type
                    output.CopyFrom(onnx.helper.make_tensor_value_info(node.input[0], kind, [None, None]))
    return labels


def _keep_answers(graph: onnx.GraphProto, path: Path) -> None:
    """Leave the one output that holds a number for each class: classifiers of skl2onnx also answer the label."""
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
    answers = [value for value in graph.output if value.type.tensor_type.elem_type in floats]
    if len(answers) != 1:
        raise ForeignModelError(
            f"{path} has outputs {[value.name for value in graph.output]}, allowed: one of floats, a column a class"
        )
    del graph.output[:]
    graph.output.extend(answers)


def _upgrade(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model at the opset of our own graphs, if its own is older."""
    (opset,) = (entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"})
    if opset >= OPSET:
        return proto
    proto.ir_version = max(proto.ir_version, 4)  # the first in which constants need not be inputs too
    return onnx.version_converter.convert_version(proto, OPSET)


def _widen(graph: onnx.GraphProto) -> None:
    """Have a graph in half precision reckon in single: rounded to halves, answers change with batch and processor."""
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    attributes = [(node, attribute) for node in graph.node for attribute in node.attribute]
    for tensor in (*graph.initializer, *(attribute.t for _, attribute in attributes)):
        if tensor.data_type == half:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("f4"), tensor.name))
    for node, attribute in attributes:
        if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", half):
            attribute.i = single
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
