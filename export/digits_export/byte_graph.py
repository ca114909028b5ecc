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
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from digits_export.data import Floats
from digits_export.graphs import bridge, graph_of, join
from digits_export.quantization import find_grid

PIXELS = 784
OUTPUTS = ("digits", "confidences", "probabilities", "flags", "ink")
BLANK, INVERTED, OUT_OF_RANGE, LOW_CONFIDENCE = 1, 2, 4, 8
BLANK_BELOW, INVERTED_ABOVE = 1.5 / PIXELS, 0.5  # of mean ink, as the server has them for images of floats
AFFINE = {"MatMul", "Gemm", "Add", "Sub", "Reshape", "Flatten", "Identity"}
"""Operators that leave a linear function of the pixels one, if all their other inputs are constant."""
BLOCK = 4  # side in pixels of the blocks whose means the outlier score (`outlier`) and the mean ink are made from
IMPULSE = 4096.0  # a power of two: scaling by it is exact, and biases vanish beside it
OWN = "float_"  # prefix of all names that come from the float graph


def write(graph: Path, target: Path) -> bool:
    """Derive the byte graph of an annotated `model.onnx` and return whether its first layer runs in integers.

    pixels uint8 [batch, 784] -> digits [batch] uint8 (uint16 beyond 256 classes), confidences float32 [batch],
    probabilities float32 [batch, classes], flags uint8 [batch], ink float32 [batch]. Thresholds are those of the
    metadata, as constants; where one is missing, its flag is never raised.
    """
    raw = graph.read_bytes()
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(raw))  # the extractor cuts where shapes are known
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key.startswith("digits.")}
    layer = _first_layer(model)
    model = onnx.compose.add_prefix(model, OWN)
    outputs = [output.name for output in model.graph.output]
    if layer is None:
        body, head, ends = model.graph, _float_head(), [model.graph.input[0].name]
    else:
        ends = [OWN + name for name in layer.ends]
        body, head = onnx.utils.Extractor(model).extract_model(ends, outputs).graph, _integer_head(layer)
    tail = _tail(facts, has_score=len(outputs) > 1)
    parts = [head, bridge([value.name for value in head.output], ends), body]
    parts += [bridge(outputs, [value.name for value in tail.input]), tail]
    made = join(parts, "digits_bytes")
    opsets = [*model.opset_import, onnx.helper.make_opsetid("com.microsoft", 1)]  # of onnxruntime's own operators
    derived = onnx.helper.make_model(made, opset_imports=opsets, ir_version=model.ir_version)
    derived.producer_name = "digits-export"
    kind = "floats" if layer is None else "integers"
    properties = {"digits.derived_from": hashlib.sha256(raw).hexdigest(), "digits.first_layer": json.dumps(kind)}
    onnx.helper.set_model_props(derived, properties)
    onnx.checker.check_model(derived, full_check=True)
    onnx.save(derived, target)
    return layer is not None


def first_layer_of(path: Path) -> str:
    """Return in what a byte graph computes its first layer: `integers` or `floats`."""
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return str(json.loads(properties["digits.first_layer"]))


@dataclass(frozen=True)
class _Layer:
    """The linear functions of the pixels with which a graph begins."""

    sums: list[str]
    """Tensors that are (n, widths) weighted sums of the pixels."""
    pools: list[str]
    """Tensors that are (n, 49) means of blocks of pixels."""
    widths: list[int] = field(default_factory=list)
    whole: Any = None  # (784, sum of widths) whole numbers
    steps: Any = None  # (sum of widths,) what one of them stands for
    bias: Any = None  # (sum of widths,)

    @property
    def ends(self) -> list[str]:
        return [*self.sums, *self.pools]


def _first_layer(model: onnx.ModelProto) -> _Layer | None:
    """Return the layer with which a graph begins, if its weights lie on grids.

    Where it ends is read from the graph; its weights are read off its answers to one impulse a pixel.
    """
    layer = _linear_ends(model.graph)
    if not layer.sums:
        return None
    beginning = onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], layer.ends)
    answers = _run(beginning, np.vstack([np.zeros(PIXELS), IMPULSE * np.eye(PIXELS)]).astype(np.float32))
    if any(answer.ndim != 2 for answer in answers):
        return None
    sums = answers[: len(layer.sums)]
    bias, *impulses = np.concatenate(sums, axis=1, dtype=np.float64)
    grid = find_grid((np.array(impulses) - bias) / IMPULSE)
    if grid is None:
        return None
    widths = [answer.shape[1] for answer in sums]
    return replace(layer, widths=widths, whole=grid[0], steps=grid[1], bias=bias)


def _linear_ends(graph: onnx.GraphProto) -> _Layer:
    """Return the linear tensors that others than linear operators use; none if the input itself is used so."""
    source = graph.input[0].name
    constants = {constant.name for constant in graph.initializer}
    linear, pooled, sums, pools = {source}, set[str](), dict[str, None](), list[str]()
    for node in graph.node:
        moving = [name for name in node.input if name and name not in constants]
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type in AFFINE and len(moving) == 1 and moving[0] in linear:
            linear.add(node.output[0])
        elif node.op_type == "AveragePool" and moving[0] in linear and attributes.get("strides") == [BLOCK, BLOCK]:
            pooled.add(node.output[0])
        elif node.op_type == "Reshape" and moving[0] in pooled:
            pools.append(node.output[0])
        elif node.op_type == "Constant":
            constants.add(node.output[0])
        else:
            sums |= dict.fromkeys(name for name in moving if name in linear | pooled)
    return _Layer([] if source in sums else list(sums), pools)


def _run(model: onnx.ModelProto, vectors: Floats) -> list[Floats]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {session.get_inputs()[0].name: vectors})]


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


def _integer_head(layer: _Layer) -> onnx.GraphProto:
    """Return one multiplication of bytes for all weighted sums, and a small one for the means of blocks.

    Blocks are summed from strips four rows high, so that few products are by zero; mean ink is the mean of means.
    """
    sums, pools = ([f"{kind}_{n}" for n in range(len(of))] for kind, of in (("sum", layer.sums), ("pool", layer.pools)))
    side = 28 // BLOCK
    outputs = [f"float[batch, {width}] {name}" for name, width in zip(sums, layer.widths, strict=True)]
    outputs += [f"float[batch, {side**2}] {name}" for name in pools]
    split = f"{', '.join(sums)} = Split<axis = 1>(layer, widths)" if len(sums) > 1 else f"{sums[0]} = Identity(layer)"
    return graph_of(
        f"""head (uint8[batch, 784] pixels) => ({", ".join(outputs)}, float[batch] ink) {{
            layer = com.microsoft.MatMulIntegerToFloat(pixels, weights, level, steps, , , bias)
            {split}
            strips = Reshape(pixels, strip_shape)
            blocks = com.microsoft.MatMulIntegerToFloat(strips, summing, level, share)
            rows = Reshape(blocks, row_shape)
            {" ".join(f"{name} = Identity(rows)" for name in pools)}
            ink = ReduceMean<keepdims = 0>(rows, pixel_axis)
        }}""",
        weights=layer.whole.astype(np.int8),
        level=np.float32(1 / 255),
        steps=layer.steps.astype(np.float32),
        bias=layer.bias.astype(np.float32),
        widths=np.array(layer.widths),
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
    edges, base, jumps = _ink_flags((inks[0], inks[-1]) if inks else None)
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
        base=base,
        unsure_base=base + np.float32(LOW_CONFIDENCE),
    )


def _ink_flags(ink_range: tuple[float, float] | None) -> tuple[Floats, Any, Floats]:
    """Return the flags of ink as a step function: its edges, its value below all of them, and its jumps at each."""
    low, high = ink_range or (-1.0, 2.0)  # outside of which no ink is
    edges = sorted({BLANK_BELOW, INVERTED_ABOVE, *(ink_range or ())})
    middles = [(left + right) / 2 for left, right in pairwise([-1.0, *edges, 2.0])]
    flags = [
        BLANK * (ink < BLANK_BELOW) + INVERTED * (ink > INVERTED_ABOVE) + OUT_OF_RANGE * (not low <= ink <= high)
        for ink in middles
    ]
    return np.array(edges, np.float32), np.float32(flags[0]), np.diff(flags).astype(np.float32)
