"""Model packages for tests: real ONNX files, so small that what they answer can be told by looking at the input."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = [str(digit) for digit in range(10)]


def image_of(digit: int, ink: int = 255) -> np.ndarray:
    """Return the (784,) uint8 image that the toy model takes for `digit`: pixel number `digit` is ink."""
    pixels = np.zeros(784, np.uint8)
    pixels[digit] = ink
    pixels[300:400] = 60  # enough ink not to be blank
    return pixels


def write_package(
    folder: Path,
    *,
    sharpness: float = 10.0,
    shift: int = 0,
    reference_error: float = 0.0,
    labels: list[str] = LABELS,
    gives_logits: bool = False,
    metadata: dict | None = None,
) -> Path:
    """Write a package whose model looks for the brightest of the first pixels, one for each label.

    Args:
        folder: `<name>/<version>`.
        sharpness: Logit of a pixel that is full ink.
        shift: Added to the class it answers, so that versions can be told apart.
        reference_error: Added to the reference outputs.
        labels: Names of the classes.
        gives_logits: Leave the softmax out.
        metadata: Replaces entries of the model's metadata; None takes one out.
    """
    folder.mkdir(parents=True)
    classes = len(labels)
    weights = np.zeros((784, classes), np.float32)
    pixels = np.arange(min(classes, 784))
    weights[pixels, (pixels + shift) % classes] = sharpness
    nodes = [
        helper.make_node("MatMul", ["vectors", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    output = "logits" if gives_logits else "probabilities"
    graph = helper.make_graph(
        nodes[:1] if gives_logits else nodes,
        "toy",
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    entries = {
        "digits.labels": json.dumps(labels),
        "digits.abstain": json.dumps({"confidence": 0.5}),
        "digits.reference": json.dumps({"ink_histogram": {"edges": [0.01, 0.1, 0.42]}}),
        "digits.training": json.dumps({"recipe": "toy", "test_accuracy": 0.5, "dataset": "toys"}),
        **(metadata or {}),
    }
    helper.set_model_props(model, {name: value for name, value in entries.items() if value is not None})
    onnx.save(model, folder / "model.onnx")
    inputs = np.stack([image_of(digit) for digit in range(10)])
    logits = inputs.astype(np.float32) / 255 @ weights
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = logits if gives_logits else probabilities
    np.savez(folder / "reference.npz", inputs=inputs, probabilities=answers.astype(np.float32) + reference_error)
    return folder


def write_byte_graph(
    folder: Path,
    *,
    sharpness: float = 10.0,
    shift: int = 0,
    confidence: float = 0.5,
    ink_range: tuple[float, float] = (0.01, 0.42),
    derived_from: str = "",
) -> Path:
    """Write a package's byte graph, whose first layer multiplies integers: answers as the float graph of a toy package.

    Args:
        folder: `<name>/<version>`, with its model.onnx, of ten classes.
        sharpness: As that package's.
        shift: As that package's.
        confidence: Confidence below which it abstains.
        ink_range: Mean ink outside of which it flags an image.
        derived_from: Digest of the model.onnx that it says it was made of; empty: the right one.
    """
    weights = np.zeros((784, 11), np.int8)  # a unit for each class, and one for the mean ink
    weights[np.arange(10), (np.arange(10) + shift) % 10] = 1
    weights[:, 10] = 1
    scales = np.array([sharpness / 255] * 10 + [1 / 784 / 255], np.float32)
    constants = {
        "weights": weights,
        "scales": scales,
        "sizes": np.array([10, 1]),
        "axis": np.array([1]),
        "confidence": np.float32(confidence),
        "blank": np.float32(1.5 / 784),
        "inverted": np.float32(0.5),
        "faint": np.float32(ink_range[0]),
        "bold": np.float32(ink_range[1]),
    }
    # Bits of the flags, by the outputs of the comparisons that set them.
    bits = {"is_blank": 1, "is_inverted": 2, "is_out": 4, "is_unsure": 8}
    nodes = [
        helper.make_node("MatMulInteger", ["pixels", "weights"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scales"], ["scaled"]),
        helper.make_node("Split", ["scaled", "sizes"], ["logits", "ink_column"], axis=1),
        helper.make_node("Squeeze", ["ink_column", "axis"], ["ink"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["digits"], to=TensorProto.UINT8),
        helper.make_node("ReduceMax", ["probabilities"], ["confidences"], axes=[1], keepdims=0),
        helper.make_node("Less", ["ink", "blank"], ["is_blank"]),
        helper.make_node("Greater", ["ink", "inverted"], ["is_inverted"]),
        helper.make_node("Less", ["ink", "faint"], ["is_faint"]),
        helper.make_node("Greater", ["ink", "bold"], ["is_bold"]),
        helper.make_node("Or", ["is_faint", "is_bold"], ["is_out"]),
        helper.make_node("Less", ["confidences", "confidence"], ["is_unsure"]),
    ]
    for name, bit in bits.items():
        constants[f"{name}_bit"] = np.uint8(bit)
        nodes.append(helper.make_node("Cast", [name], [f"{name}_byte"], to=TensorProto.UINT8))
        nodes.append(helper.make_node("Mul", [f"{name}_byte", f"{name}_bit"], [f"{name}_flag"]))
    nodes.append(helper.make_node("Add", ["is_blank_flag", "is_inverted_flag"], ["ink_flags"]))
    nodes.append(helper.make_node("Add", ["is_out_flag", "is_unsure_flag"], ["other_flags"]))
    nodes.append(helper.make_node("Add", ["ink_flags", "other_flags"], ["flags"]))
    kinds = {"digits": TensorProto.UINT8, "flags": TensorProto.UINT8}
    outputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
        for name, shape in (
            ("digits", ["batch"]),
            ("confidences", ["batch"]),
            ("probabilities", ["batch", 10]),
            ("flags", ["batch"]),
            ("ink", ["batch"]),
        )
    ]
    graph = helper.make_graph(
        nodes,
        "toy bytes",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 784])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    helper.set_model_props(model, {"digits.derived_from": derived_from or digest})
    onnx.save(model, folder / "bytes.onnx")
    return folder
