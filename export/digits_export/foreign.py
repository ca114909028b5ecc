"""Models of other makers, read from their files: an ONNX graph, and the original to compare it with."""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from digits_export.data import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALLOWED = ".keras, .h5, .hdf5, .onnx, or the folder of a SavedModel"
OPSET = 18  # as `convert`; graphs of older opsets are brought up to it
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

    proto: Any
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
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the frameworks' greetings
            return reader(path)
    except ForeignModelError:
        raise
    except Exception as error:  # what a damaged file raises differs from framework to framework
        reason = " ".join(str(error).split())[:300]
        raise ForeignModelError(f"{path} can't be read as {kind or 'a SavedModel'}: {reason}") from error


def _keras(path: Path) -> ForeignModel:
    import keras  # noqa: PLC0415

    logging.getLogger("absl").setLevel(logging.ERROR)
    model = keras.models.load_model(path, compile=False)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ForeignModelError(
            f"{path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs, allowed: one of each"
        )
    (given,) = model.inputs

    def answer(images: Any) -> Any:
        blocks = [images[start : start + 1000] for start in range(0, len(images), 1000)]
        return np.concatenate([np.asarray(model(block, training=False)) for block in blocks])

    proto = _convert(lambda x: model(x, training=False), given.shape[1:], given.dtype)
    return ForeignModel(proto, f"keras {version('keras')}", answer)


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

    proto = _convert(call, given.shape[1:], given.dtype)
    return ForeignModel(proto, f"tensorflow {tf.__version__}", lambda images: call(tf.constant(images)).numpy())


def _convert(call: Callable[[Any], Any], shape: Any, kind: Any) -> Any:
    """Return a function of (n, *shape) tensors as an ONNX model."""
    import tensorflow as tf  # noqa: PLC0415, TID251
    import tf2onnx  # noqa: PLC0415

    spec = [tf.TensorSpec((None, *shape), kind, "images")]
    proto, _ = tf2onnx.convert.from_function(tf.function(call, input_signature=spec), spec, opset=OPSET)
    return proto


def _onnx(path: Path) -> ForeignModel:
    import onnx  # noqa: PLC0415

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

    import onnxruntime as ort  # noqa: PLC0415

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]

    def answer(images: Any) -> Any:
        step = batch if isinstance(batch, int) else 1000
        blocks = [images[start : start + step] for start in range(0, len(images), step)]
        return np.concatenate([session.run(None, {inputs[0].name: block})[0] for block in blocks])

    return ForeignModel(proto, f"onnxruntime {version('onnxruntime')}", answer, labels)


def _take_out_maps(graph: Any) -> list[str]:
    """Have skl2onnx's classifiers answer tensors instead of dictionaries; return the labels that their nodes name."""
    import onnx  # noqa: PLC0415

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
                    output.CopyFrom(_float_tensor(node.input[0]))
    return labels


def _float_tensor(name: str) -> Any:
    import onnx  # noqa: PLC0415

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


def _keep_answers(graph: Any, path: Path) -> None:
    """Leave the one output that holds a number for each class: classifiers of skl2onnx also answer the label."""
    import onnx  # noqa: PLC0415

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
    answers = [value for value in graph.output if value.type.tensor_type.elem_type in floats]
    if len(answers) != 1:
        raise ForeignModelError(
            f"{path} has outputs {[value.name for value in graph.output]}, allowed: one of floats, a column a class"
        )
    del graph.output[:]
    graph.output.extend(answers)


def _upgrade(proto: Any) -> Any:
    """Return the model at the opset of our own graphs, if it is older."""
    import onnx  # noqa: PLC0415

    (opset,) = (entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"})
    return onnx.version_converter.convert_version(proto, OPSET) if opset < OPSET else proto
