"""Keras network to ONNX graph, and proof that both answer alike.

What is converted is what is served: 784 pixels in, probabilities and an outlier score out, whatever shape the network
wants its image in. Training leaves nothing behind in it: convolutions have absorbed their batch normalisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from digits_export import models
from digits_export.data import Floats, Images, to_vectors
from digits_export.outlier import InkDensity

OPSET = 18  # the highest that tf2onnx 1.17 writes; every onnxruntime since 1.14 reads it
INPUT, OUTPUTS = "vectors", ("probabilities", "outlier_score")
PARITY = 1e-5
PARITY_BATCHES = (1, 7, 512)  # alone, odd, and more than one block of any kernel


class ParityError(RuntimeError):
    """The ONNX graph answers differently from the Keras network."""


def to_onnx(model: Any, density: InkDensity, path: Path) -> None:
    """Write the graph [batch, 784] -> (probabilities [batch, 10], outlier_score [batch]), checked.

    Args:
        model: A network of `models.build`.
        density: Scores how unlike a digit an image is.
        path: Where `model.onnx` goes.
    """
    proto = from_function(_served(model, density), (None, 784), "float32")
    _rename(proto.graph)
    _name_batch(proto.graph)
    proto.graph.name, proto.graph.doc_string, proto.producer_name = "digits", "", "digits-export"
    del proto.opset_import[1:]  # tf2onnx also declares ai.onnx.ml, of which nothing is used
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def from_function(call: Callable[[Any], Any], shape: tuple[int | None, ...], kind: str) -> onnx.ModelProto:
    """Return a function of a tensor of this shape and type as an ONNX model."""
    import tensorflow as tf  # noqa: PLC0415, TID251
    import tf2onnx  # noqa: PLC0415

    spec = [tf.TensorSpec(shape, kind, INPUT)]
    function = tf.function(call, input_signature=spec)
    proto, _ = tf2onnx.convert.from_function(function, spec, opset=OPSET)
    _, *captured = proto.graph.input  # tensors that the function holds, such as a Normalization's: constants
    values = {entry.name: value for value, entry in function.get_concrete_function().graph.captures}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(values[entry.name].numpy(), entry.name) for entry in captured
    )
    del proto.graph.input[1:]
    return proto


def annotate(path: Path, properties: Mapping[str, Any]) -> None:
    """Store facts as JSON under `digits.NAME` in the graph's file, beside the graph."""
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {f"digits.{name}": json.dumps(value) for name, value in properties.items()})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _served(model: Any, density: InkDensity) -> Callable[[Any], tuple[Any, Any]]:
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415, TID251

    *body, last = model.layers

    def served(vectors: Any) -> tuple[Any, Any]:
        features = tf.reshape(vectors, (-1, *model.input_shape[1:])) if len(model.input_shape) > 2 else vectors
        for layer in body:
            if isinstance(layer, keras.layers.Flatten):  # Keras' own asks for the batch size: seven nodes more
                features = tf.reshape(features, (-1, layer.output.shape[1]))
            else:
                features = layer(features, training=False)
        return tf.nn.softmax(tf.matmul(features, last.kernel) + last.bias), density.score(vectors)

    return served


def _rename(graph: onnx.GraphProto) -> None:
    """Name outputs as callers ask for them, and all within by its place: TensorFlow's names change from run to run."""
    renamed = {value.name: value.name for value in graph.input}
    renamed |= {old.name: new for old, new in zip(graph.output, OUTPUTS, strict=False)}
    constants = {constant.name: constant for constant in graph.initializer}
    del graph.initializer[:]
    for place, node in enumerate(graph.node):
        node.name = f"{node.op_type.lower()}_{place}"
        for number, name in enumerate(node.input):
            if name in constants:
                constants[name].name = renamed[name] = f"{node.name}_constant_{number}"
                graph.initializer.append(constants.pop(name))
            node.input[number] = renamed[name]
        for number, name in enumerate(node.output):
            node.output[number] = renamed.setdefault(name, f"{node.name}_{number}")
    for output in graph.output:
        output.name = renamed[output.name]


def _name_batch(graph: onnx.GraphProto) -> None:
    """Call the free axis of every input and output by its name."""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def session(graph: Path | bytes) -> ort.InferenceSession:
    """Open a graph for inference on one thread of the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(opened: ort.InferenceSession, vectors: Floats) -> list[Floats]:
    """Return the graph's outputs for (n, 784) vectors, a thousand at a time."""
    parts = [opened.run(None, {INPUT: vectors[start : start + 1000]}) for start in range(0, len(vectors), 1000)]
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def check_bytes(graph: Path, byte_graph: Path, images: Images) -> None:
    """Check that the two graphs of a package answer alike on batches of 1, 7 and 512 images.

    Raises:
        ParityError: A probability differs by more than 1e-5.
    """
    floats, derived, pixels = session(graph), session(byte_graph), images.reshape(len(images), -1)
    for size in PARITY_BATCHES:
        expected = run(floats, to_vectors(pixels[:size]))[0]
        probabilities = derived.run(["probabilities"], {"pixels": pixels[:size]})[0]
        _check_alike(probabilities, expected, f"{byte_graph} differs from {graph.name}", size)


def check_parity(model: Any, density: InkDensity, path: Path, vectors: Floats) -> None:
    """Check that the graph answers as Keras does on batches of 1, 7 and 512.

    Args:
        model: The network the graph was made from.
        density: The outlier score the graph was made with.
        path: The graph.
        vectors: At least 512 real images, (n, 784) float32 in [0, 1].

    Raises:
        ParityError: A probability differs by more than 1e-5, or a score by more than 1e-4 of its size.
    """
    opened = session(path)
    for size in PARITY_BATCHES:
        probabilities, scores = run(opened, vectors[:size])
        _check_alike(probabilities, models.predict(model, vectors[:size]), f"{path} differs from Keras", size)
        # Relative: scores are sums of squares in the hundreds, where 1e-5 is below float32's own resolution.
        if not np.allclose(scores, density.score(vectors[:size]), rtol=1e-4, atol=1e-4):
            raise ParityError(f"{path}'s outlier_score differs from TensorFlow's at batch {size}")


def _check_alike(probabilities: Floats, expected: Floats, fault: str, size: int) -> None:
    difference = np.abs(probabilities - expected).max()
    if not difference <= PARITY:  # so that NaN is refused too
        raise ParityError(f"{fault} by {difference:.1e} at batch {size}, allowed: {PARITY:.0e}")
