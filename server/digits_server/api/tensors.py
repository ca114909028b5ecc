"""Tensors of the Open Inference Protocol to images, predictions to tensors, and all that can be wrong with a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from digits_server.api import messages as converters
from digits_server.errors import InvalidArgument, quoted
from digits_server.inference.engine import PIXELS, Images, Predictions
from digits_server.inference.request import Outcome
from digits_server.models.registry import ServedModel
from open_inference.v2 import inference_pb2 as pb

PLATFORM = "onnx_onnxv1"
INPUT = "vectors"
"""Name of the one input, that of the ONNX files: who has served them elsewhere finds it unchanged."""
SHAPES = ((PIXELS,), (28, 28), (28, 28, 1))
"""What may follow the number of images in the input's shape."""


@dataclass(frozen=True)
class Datatype:
    """One of the protocol's types of elements."""

    dtype: np.dtype[Any]
    contents: str
    """The field of `InferTensorContents` that holds its elements."""


DATATYPES = {
    "UINT8": Datatype(np.dtype(np.uint8), "uint_contents"),
    "FP32": Datatype(np.dtype("<f4"), "fp32_contents"),
}


@dataclass(frozen=True)
class Output:
    """What can be asked for of a model."""

    datatype: str
    column: str
    """The attribute of `Predictions` that holds it."""
    is_by_class: bool = False
    """Whether it has an element for each class of an image, not one alone."""


OUTPUTS = {
    "probabilities": Output("FP32", "probabilities", is_by_class=True),
    "digits": Output("UINT8", "digits"),
    "confidences": Output("FP32", "confidences"),
    "quality_flags": Output("UINT8", "flags"),
}


def images(request: pb.ModelInferRequest) -> Images:
    """Return the (n, 784) images of a request, n >= 1. Raw contents are not copied.

    Raises:
        InvalidArgument: There is not just the one input, or its type, shape, size or values are wrong.
    """
    tensor = _only_input(request)
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None:
        raise InvalidArgument(
            "inputs[0].datatype", f"is {quoted(tensor.datatype)}; allowed are {' and '.join(DATATYPES)}"
        )
    rows, *image = tensor.shape[:5] or [0]
    if rows < 1 or tuple(image) not in SHAPES:
        allowed = ", ".join(str(["n", *shape]).replace("'", "") for shape in SHAPES)
        raise InvalidArgument(
            "inputs[0].shape", f"expected one of {allowed}, n from 1, got {quoted(list(tensor.shape))}"
        )
    read = _raw if request.raw_input_contents else _typed
    values = read(request, rows, datatype)
    if tensor.datatype == "FP32":
        converters.check_range("inputs[0]", values)
    return values.reshape(-1, PIXELS)


def _only_input(request: pb.ModelInferRequest) -> pb.ModelInferRequest.InferInputTensor:
    for at, tensor in enumerate(request.inputs[:2]):  # there may be a million
        if tensor.name != INPUT:
            raise InvalidArgument(f"inputs[{at}].name", f"is {quoted(tensor.name)}; allowed is {INPUT!r}")
    if len(request.inputs) != 1:
        raise InvalidArgument("inputs", f"expected {INPUT!r} once, got it {len(request.inputs)} times")
    return request.inputs[0]


def _raw(request: pb.ModelInferRequest, rows: int, datatype: Datatype) -> Images:
    """Return the flat elements of the input from the bytes beside it."""
    raw, tensor = request.raw_input_contents, request.inputs[0]
    if len(raw) != 1:
        raise InvalidArgument("raw_input_contents", f"expected 1, one for each input, got {len(raw)}")
    if tensor.contents.ListFields():
        raise InvalidArgument("inputs[0].contents", "given beside raw_input_contents; give one of the two")
    size = rows * PIXELS * datatype.dtype.itemsize
    if len(raw[0]) != size:
        raise InvalidArgument(
            "raw_input_contents[0]",
            f"expected {size} bytes for {tensor.datatype} {list(tensor.shape)}, got {len(raw[0])}",
        )
    return np.frombuffer(raw[0], datatype.dtype)


def _typed(request: pb.ModelInferRequest, rows: int, datatype: Datatype) -> Images:
    """Return the flat elements of the input from its own contents."""
    tensor = request.inputs[0]
    for field, _ in tensor.contents.ListFields():
        if field.name != datatype.contents:
            raise InvalidArgument(
                f"inputs[0].contents.{field.name}", f"given for {tensor.datatype}; allowed is {datatype.contents}"
            )
    values = getattr(tensor.contents, datatype.contents)
    name = f"inputs[0].contents.{datatype.contents}"
    if len(values) != rows * PIXELS:
        raise InvalidArgument(name, f"expected {rows * PIXELS} elements for {list(tensor.shape)}, got {len(values)}")
    if datatype.dtype.itemsize > 1:
        return np.array(values, np.float32)
    numbers = np.array(values, np.uint32)
    if numbers.max() > 255:
        at = int(numbers.argmax())
        raise InvalidArgument(name, f"element {at} is {numbers[at]}; allowed is 0 to 255")
    return numbers.astype(np.uint8)


def outputs(request: pb.ModelInferRequest) -> Sequence[str]:
    """Return the names of the outputs that a request asks for; none named: all.

    Raises:
        InvalidArgument: One does not exist, or is named twice.
    """
    names: dict[str, None] = {}
    for at, output in enumerate(request.outputs):
        if output.name not in OUTPUTS:
            raise InvalidArgument(f"outputs[{at}].name", f"is {quoted(output.name)}; allowed are {', '.join(OUTPUTS)}")
        if output.name in names:
            raise InvalidArgument(f"outputs[{at}].name", f"is {output.name!r} for the second time")
        names[output.name] = None
    return list(names or OUTPUTS)


def response(
    request: pb.ModelInferRequest, names: Sequence[str], model: ServedModel, outcome: Outcome[Predictions]
) -> pb.ModelInferResponse:
    """Return the answer to a request: raw if that was, with the outputs named."""
    answer = pb.ModelInferResponse(model_name=model.package.name, model_version=model.package.version, id=request.id)
    answer.parameters["queue_seconds"].double_param = outcome.queue_s
    answer.parameters["inference_seconds"].double_param = outcome.inference_s
    answer.parameters["batch_size"].int64_param = outcome.batch_size
    for name in names:
        output = OUTPUTS[name]
        column = getattr(outcome.answers, output.column)[outcome.start : outcome.end]  # (n,) or (n, classes)
        datatype = _datatype(output, model)
        tensor = answer.outputs.add(name=name, datatype=datatype, shape=column.shape)
        if request.raw_input_contents:
            answer.raw_output_contents.append(column.tobytes())
        else:
            contents = "fp32_contents" if datatype == "FP32" else "uint_contents"
            getattr(tensor.contents, contents).extend(column.ravel().tolist())
    return answer


def _datatype(output: Output, model: ServedModel) -> str:
    """Return the type of an output's elements; indices of more than 256 classes don't fit in a byte."""
    return "UINT16" if output.column == "digits" and len(model.package.labels) > 256 else output.datatype


def metadata(model: ServedModel, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Return what there is to know about a model before asking it."""
    classes = len(model.package.labels)
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=model.package.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[tensor(name=INPUT, datatype="UINT8", shape=[-1, PIXELS])],
        outputs=[
            tensor(name=name, datatype=_datatype(output, model), shape=[-1, classes] if output.is_by_class else [-1])
            for name, output in OUTPUTS.items()
        ],
    )
