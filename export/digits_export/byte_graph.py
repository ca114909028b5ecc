"""The graph that is served: bytes in, columns out, derived from `model.onnx`, which stays the truth it is checked by.

Pixels are integers, so a first layer whose weights lie on a grid of integers runs in integers and is *exact*: only
the order of the work changes, not the function. Where they don't, the byte graph computes in floats, as the float
graph does.

onnxruntime's kernels for processors without VNNI add products of uint8 and int8 in pairs, in 16 bits that saturate.
Weights of at most 63 can't: 2 x 255 x 63 = 32,130 is below 32,768. So 7 bits are exact on every processor.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from digits_export.graphs import bridge, graph_of, join
from digits_export.quantization import find_grid

PIXELS = 784
OUTPUTS = ("digits", "confidences", "probabilities", "flags", "ink")
BLANK, INVERTED, OUT_OF_RANGE, LOW_CONFIDENCE = 1, 2, 4, 8
BLANK_BELOW, INVERTED_ABOVE = 1.5 / PIXELS, 0.5  # of mean ink, as the server has them for images of floats
BLOCK = 4  # side in pixels of the blocks whose means the outlier score (`outlier`) and the mean ink are made from
OWN = "float_"  # prefix of all names that come from the float graph


def write(graph: Path, target: Path) -> None:
    """Derive the byte graph of an annotated `model.onnx`; its metadata says whether its first layer runs in integers.

    pixels uint8 [batch, 784] -> digits [batch] uint8 (uint16 beyond 256 classes), confidences float32 [batch],
    probabilities float32 [batch, classes], flags uint8 [batch], ink float32 [batch]. Thresholds are those of the
    metadata, as constants; where one is missing, its flag is never raised.
    """
    raw = graph.read_bytes()
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(raw))  # the extractor cuts where shapes are known
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key.startswith("digits.")}
    model = onnx.compose.add_prefix(model, OWN)
    outputs = [output.name for output in model.graph.output]
    dense = _find_dense(model.graph)
    if dense is None:
        body, head, ends = model.graph, _float_head(), [model.graph.input[0].name]
    else:
        ends = dense.ends
        body, head = onnx.utils.Extractor(model).extract_model(ends, outputs).graph, _integer_head(dense)
    tail = _tail(facts, has_score=len(outputs) > 1)
    parts = [head, bridge([value.name for value in head.output], ends), body]
    parts += [bridge(outputs, [value.name for value in tail.input]), tail]
    made = join(parts, "digits_bytes")
    opsets = [*model.opset_import, onnx.helper.make_opsetid("com.microsoft", 1)]  # of onnxruntime's own operators
    derived = onnx.helper.make_model(made, opset_imports=opsets, ir_version=model.ir_version)
    derived.producer_name = "digits-export"
    kind = "floats" if dense is None else "integers"
    properties = {"digits.derived_from": hashlib.sha256(raw).hexdigest(), "digits.first_layer": json.dumps(kind)}
    onnx.helper.set_model_props(derived, properties)
    onnx.checker.check_model(derived, full_check=True)
    onnx.save(derived, target)


def first_layer_of(path: Path) -> str:
    """Return in what a byte graph computes its first layer: `integers` or `floats`."""
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return str(json.loads(properties["digits.first_layer"]))


@dataclass(frozen=True)
class _Dense:
    """The dense layer with which a graph begins, its weights whole multiples of a step for each unit."""

    whole: npt.NDArray[Any]  # (784, units)
    steps: npt.NDArray[Any]  # (units,)
    bias: npt.NDArray[Any]  # (units,)
    ends: list[str]
    """The tensors of its sums (n, units) and, where there is an outlier score, of the means of blocks (n, 49)."""


def _find_dense(graph: onnx.GraphProto) -> _Dense | None:
    """Return the dense layer with which a graph begins, if its weights lie on a grid and nothing else sees pixels."""
    pixels = graph.input[0].name
    while same := _follow(graph, pixels, "Identity"):
        pixels = same[0].output[0]
    dense = _follow(graph, pixels, "MatMul", "Add")
    pooling = _follow(graph, pixels, "Reshape", "AveragePool", "Reshape")
    chains = [nodes for nodes in (dense, pooling) if nodes]
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    values = [constants[name] for node in dense for name in node.input if name in constants]
    if len(values) != 2 or len(chains) != sum(pixels in node.input for node in graph.node):
        return None
    weights, bias = values
    grid = find_grid(weights.astype(np.float64)) if bias.shape == weights.shape[1:] else None
    return grid and _Dense(*grid, bias, [nodes[-1].output[0] for nodes in chains])


def _follow(graph: onnx.GraphProto, name: str, *kinds: str) -> list[onnx.NodeProto]:
    """Return nodes of these kinds, the first of which takes the named tensor, each next what the one before gives."""
    found: list[onnx.NodeProto] = []
    for kind in kinds:
        step = next((node for node in graph.node if node.op_type == kind and name in node.input), None)
        if step is None:
            return []
        found.append(step)
        name = step.output[0]
    return found


def _float_head() -> onnx.GraphProto:
    return graph_of(
        """head (uint8[batch, 784] pixels) => (float[batch, 784] vectors, float[batch] ink) {
            levels = Cast<to = 1>(pixels)
            vectors = Mul(levels, level)
            ink = ReduceMean<keepdims = 0>(vectors, pixel_axis)
        }""",
        level=np.float32(1 / 255),
        pixel_axis=np.array([1]),
    )


def _integer_head(dense: _Dense) -> onnx.GraphProto:
    """Return one multiplication of bytes for all weighted sums, and a small one for the means of blocks.

    Blocks are summed from strips four rows high, so that few products are by zero; mean ink is the mean of means.
    """
    side = 28 // BLOCK
    return graph_of(
        f"""head (uint8[batch, 784] pixels) =>
            (float[batch, {len(dense.bias)}] sums, float[batch, {side**2}] means, float[batch] ink) {{
            sums = com.microsoft.MatMulIntegerToFloat(pixels, weights, level, steps, , , bias)
            strips = Reshape(pixels, strip_shape)
            blocks = com.microsoft.MatMulIntegerToFloat(strips, summing, level, share)
            means = Reshape(blocks, row_shape)
            ink = ReduceMean<keepdims = 0>(means, pixel_axis)
        }}""",
        weights=dense.whole.astype(np.int8),
        level=np.float32(1 / 255),
        steps=dense.steps.astype(np.float32),
        bias=dense.bias,
        strip_shape=np.array([-1, BLOCK * 28]),
        summing=np.tile(np.repeat(np.eye(side, dtype=np.int8), BLOCK, axis=0), (BLOCK, 1)),  # (112, 7)
        share=np.float32(1 / BLOCK**2),
        row_shape=np.array([-1, side**2]),
        pixel_axis=np.array([1]),
    )


def _tail(facts: dict[str, Any], *, has_score: bool) -> onnx.GraphProto:
    """Return what is read out of probabilities, outlier score and mean ink."""
    abstain = facts.get("digits.abstain", {})
    inks = facts.get("digits.reference", {}).get("ink_histogram", {}).get("edges")
    classes = len(facts["digits.labels"])
    kind, number = ("uint8", 2) if classes <= 256 else ("uint16", 4)
    # Flags of ink are a step function of it: their value below all edges, and a jump for each edge that it is above.
    base, steps = BLANK, [(BLANK_BELOW, -BLANK), (INVERTED_ABOVE, INVERTED)]
    if inks:
        base, steps = base + OUT_OF_RANGE, [*steps, (inks[0], -OUT_OF_RANGE), (inks[-1], OUT_OF_RANGE)]
    edges, jumps = np.array(sorted(steps), np.float32).T
    unsure = "far = Greater(score, most_outlying) unsure = Or(low, far)" if has_score else "unsure = Identity(low)"
    return graph_of(
        f"""tail (float[batch, {classes}] likelihoods{", float[batch] score" if has_score else ""}) =>
            ({kind}[batch] digits, float[batch] confidences, float[batch, {classes}] probabilities,
             uint8[batch] flags, float[batch] ink) {{
            best = ArgMax<axis = 1, keepdims = 0>(likelihoods)
            digits = Cast<to = {number}>(best)
            confidences = ReduceMax<keepdims = 0>(likelihoods, class_axis)
            probabilities = Identity(likelihoods)
            low = Less(confidences, least_confidence)
            {unsure}
            of_confidence = Where(unsure, unsure_base, base)
            above = Greater(ink, ink_edges)
            passed = Cast<to = 1>(above)
            sum = Gemm(jumps, passed, of_confidence)
            flag_row = Cast<to = 2>(sum)
            flags = Reshape(flag_row, flat)
        }}""",
        class_axis=np.array([1]),
        flat=np.array([-1]),
        least_confidence=np.float32(abstain.get("confidence", 0)),
        most_outlying=np.float32(abstain.get("outlier_score", np.inf)),
        ink_edges=edges[:, np.newaxis],
        jumps=jumps[np.newaxis],
        base=np.float32(base),
        unsure_base=np.float32(base + LOW_CONFIDENCE),
    )
