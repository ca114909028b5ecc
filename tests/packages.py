"""Model packages for tests: real ONNX files, so small that what they answer can be told by looking at the input."""

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
    folder: Path, *, sharpness: float = 10.0, shift: int = 0, golden_error: float = 0.0, metadata: dict | None = None
) -> Path:
    """Write a package whose model looks for the brightest of the first ten pixels.

    Args:
        folder: `<name>/<version>`.
        sharpness: Logit of a pixel that is full ink.
        shift: Added to the digit it answers, so that versions can be told apart.
        golden_error: Added to the golden answers.
        metadata: Replaces entries of the model's metadata.
    """
    folder.mkdir(parents=True)
    weights = np.zeros((784, 10), np.float32)
    weights[np.arange(10), (np.arange(10) + shift) % 10] = sharpness
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["vectors", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "toy",
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(
        model,
        {
            "digits.labels": json.dumps(LABELS),
            "digits.abstain": json.dumps({"confidence": 0.5}),
            "digits.reference": json.dumps({"ink_histogram": {"edges": [0.01, 0.1, 0.42]}}),
            "digits.training": json.dumps({"test_accuracy": 0.5}),
            **(metadata or {}),
        },
    )
    onnx.save(model, folder / "model.onnx")
    inputs = np.stack([image_of(digit) for digit in range(10)])
    logits = inputs.astype(np.float32) / 255 @ weights
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.savez(folder / "golden.npz", inputs=inputs, probabilities=probabilities.astype(np.float32) + golden_error)
    return folder
