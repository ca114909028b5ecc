"""What a foreign classifier wants its images like and what its answers are: found out, and adapted in the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from scipy.special import softmax

from digits_export.calibration import TINY, soften
from digits_export.data import Floats
from digits_export.foreign import ForeignModel, ForeignModelError
from digits_export.graphs import bridge, graph_of, join

SHAPES = {(784,), (28, 28), (28, 28, 1), (1, 28, 28)}
SHAPES_ALLOWED = "(n, 784), (n, 28, 28), (n, 28, 28, 1) or (n, 1, 28, 28)"
PREFIX = "source_"


@dataclass(frozen=True)
class Scaling:
    """How images in [0, 1] become what a model wants: `factor` times the ink, plus `offset`."""

    name: str
    factor: float
    offset: float = 0.0


SCALINGS = (
    Scaling("0 ... 1", 1),
    Scaling("0 ... 255", 255),
    Scaling("-1 ... 1", 2, -1),
    Scaling("normalised by MNIST's mean 0.1307 and deviation 0.3081", 1 / 0.3081, -0.1307 / 0.3081),
    Scaling("1 ... 0, dark ink on bright paper", -1, 1),
    Scaling("255 ... 0, dark ink on bright paper", -255, 255),
)


@dataclass(frozen=True)
class Wanted:
    """The images that a model takes."""

    shape: tuple[int, ...]
    """Of one image."""
    kind: np.dtype[Any]
    """Of its numbers."""
    scaling: Scaling | None
    """Nothing if it can't be told from the graph."""

    def images(self, vectors: Floats, scaling: Scaling) -> npt.NDArray[Any]:
        """Return (n, 784) vectors in [0, 1] as the model wants them, in this scaling."""
        scaled = vectors * np.float32(scaling.factor) + np.float32(scaling.offset)
        scaled = np.round(scaled) if np.issubdtype(self.kind, np.integer) else scaled
        return scaled.reshape(-1, *self.shape).astype(self.kind)


def find_input(model: ForeignModel) -> Wanted:
    """Return what the graph says of its input; frees its batch, if that is fixed, on the way.

    Raises:
        ForeignModelError: It takes something else than images of 784 numbers.
    """
    given = model.proto.graph.input[0]
    tensor = given.type.tensor_type
    batch, *dimensions = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim] or ["?"]
    shape = tuple(dimensions)
    if len(shape) == 1 and isinstance(shape[0], str):
        shape = (784,)  # a free number of features: as good as any
    if shape not in SHAPES:
        told = ", ".join(map(str, ("n" if shape else batch, *shape)))  # the batch is free, whatever its name
        raise ForeignModelError(f"input {given.name!r} has shape ({told}), allowed: {SHAPES_ALLOWED}")
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype("O")
    if kind.kind not in "fiu":
        raise ForeignModelError(f"input {given.name!r} is of type {kind}, allowed: floats or integers")
    if isinstance(batch, int):
        _free_batch(model.proto, batch)
    whole = kind.kind in "iu" or _divides_by_255(model.proto.graph)
    return Wanted(shape, kind, SCALINGS[1] if whole else None)


def _free_batch(proto: onnx.ModelProto, batch: int) -> None:
    """Let the batch be of any size: in the input, and in shapes that were written down with it."""
    graph = proto.graph
    for value in (graph.input[0], *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    stored = [(constant, constant.name) for constant in graph.initializer]
    stored += [(node.attribute[0].t, node.output[0]) for node in graph.node if node.op_type == "Constant"]
    for constant, name in stored:
        if name in shapes:
            sizes = onnx.numpy_helper.to_array(constant).copy()
            if sizes.size and sizes[0] == batch:
                sizes[0] = 0  # as many as come in
                constant.CopyFrom(onnx.numpy_helper.from_array(sizes, constant.name))


def _divides_by_255(graph: onnx.GraphProto) -> bool:
    """Return whether the first thing that happens to the input is a scaling that pixels of 0 ... 255 need."""
    constants = {constant.name: constant for constant in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    name = graph.input[0].name
    for node in graph.node:
        if name not in node.input:
            continue
        if node.op_type in {"Reshape", "Transpose", "Cast", "Identity", "Squeeze", "Unsqueeze", "Flatten"}:
            name = node.output[0]
        elif node.op_type in {"Mul", "Div"}:
            (other,) = [entry for entry in node.input if entry != name] or [""]
            factor = onnx.numpy_helper.to_array(constants[other]).ravel() if other in constants else np.zeros(1)
            wanted = (1 / 255, 1 / 127.5) if node.op_type == "Mul" else (255, 127.5)
            return bool(len(factor) and np.isclose(factor[0], wanted, rtol=1e-3).any())
        else:
            return False
    return False


def find_output(answers: Floats, graph: onnx.GraphProto) -> tuple[str, str]:
    """Return what (n, classes) answers are, `probabilities`, `scores` or `logits`, and how that was decided.

    Scores lie in [0, 1], one for each class on its own, as a sigmoid gives them.
    """
    last = graph.output[0].name
    operator = next((node.op_type for node in reversed(graph.node) if last in node.output), "?")
    if not np.isfinite(answers).all():
        raise ForeignModelError(f"its answers are {answers[~np.isfinite(answers)][0]}, allowed: finite numbers")
    if operator == "LogSoftmax":
        return "logits", "the graph ends with LogSoftmax"
    if answers.min() >= -1e-6 and np.abs(answers.sum(axis=1) - 1).max() < 1e-3:
        return "probabilities", f"the graph ends with {operator} and each row adds up to 1"
    if operator == "Sigmoid":
        return "scores", "the graph ends with Sigmoid and rows don't add up to 1; each is divided by its sum"
    total = answers.sum(axis=1)
    return "logits", f"rows add up to {total.min():.3g} ... {total.max():.3g}, not to 1; a softmax is added"


def to_probabilities(answers: Floats, kind: str, temperature: float = 1.0) -> Floats:
    """Return a model's (n, classes) answers as probabilities, their logits divided by a temperature."""
    if kind != "logits":
        return soften(answers, temperature)
    return np.asarray(softmax(answers.astype(np.float64) / temperature, axis=1), np.float32)


def assemble(
    proto: onnx.ModelProto, wanted: Wanted, scaling: Scaling, kind: str, classes: int, temperature: float = 1.0
) -> onnx.ModelProto:
    """Return the graph vectors float32 [batch, 784] -> probabilities float32 [batch, classes] around a foreign one."""
    inner = onnx.compose.add_prefix(proto, PREFIX).graph
    steps, before = [], "vectors"
    for number, call in enumerate(_head(wanted, scaling)):
        steps.append(f"step_{number} = {call.format(before)}")
        before = f"step_{number}"
    front = graph_of(
        f"front (float[batch, 784] vectors) => (float[batch] images) "
        f"{{ {' '.join(steps)} images = Identity({before}) }}",
        factor=np.float32(scaling.factor),
        offset=np.float32(scaling.offset),
        shape=np.array([-1, *wanted.shape]),
    )
    back = graph_of(
        f"back (float[batch] answers) => (float[batch, {classes}] probabilities) {{ "
        f"raw = Cast<to = 1>(answers) {_tail(kind, temperature)} }}",
        coolness=np.float32(1 / temperature),
        tiny=np.float32(TINY),
    )
    bridges = bridge(["images"], [inner.input[0].name]), bridge([inner.output[0].name], ["answers"])
    graph = join([front, bridges[0], inner, bridges[1], back], "imported")
    made = onnx.helper.make_model(
        graph, opset_imports=proto.opset_import, ir_version=proto.ir_version, functions=proto.functions
    )
    made.producer_name = "digits-export"
    onnx.checker.check_model(made)
    return made


def _head(wanted: Wanted, scaling: Scaling) -> list[str]:
    lines = ["Mul({}, factor)"] if scaling.factor != 1 else []
    lines += ["Add({}, offset)"] if scaling.offset else []
    lines += ["Round({})"] if wanted.kind.kind in "iu" else []
    lines += ["Reshape({}, shape)"] if wanted.shape != (784,) else []
    onnx_kind = onnx.helper.np_dtype_to_tensor_dtype(wanted.kind)
    return lines + ([f"Cast<to = {onnx_kind}>({{}})"] if wanted.kind != np.float32 else [])


def _tail(kind: str, temperature: float) -> str:
    """Return how `raw` answers become probabilities; a softmax of logarithms divides scores by their sum."""
    if kind == "probabilities" and temperature == 1:
        return "probabilities = Identity(raw)"
    logits = "logits = Identity(raw)" if kind == "logits" else "positive = Max(raw, tiny) logits = Log(positive)"
    return f"{logits} cooled = Mul(logits, coolness) probabilities = Softmax<axis = 1>(cooled)"
