"""Writes ONNX files as PyTorch does, with what `make_torch.py` leaves constant varied; needs no PyTorch."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def torch_like(path: Path, *, batch: int | str, external: bool = False, ending: str = "LogSoftmax") -> None:
    """Write a small convolutional network as torch.onnx.export does: NCHW, names with slashes, Gemm with transB."""
    rng = np.random.default_rng(0)
    weights = {
        "conv1.weight": rng.normal(0, 0.2, (4, 1, 5, 5)),
        "conv1.bias": rng.normal(0, 0.1, 4),
        "fc.weight": rng.normal(0, 0.05, (10, 4 * 8 * 8)),
        "fc.bias": rng.normal(0, 0.1, 10),
    }
    flat = [batch if isinstance(batch, int) else -1, 4 * 8 * 8]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array(flat), "/Constant_output_0"))
    nodes = [
        helper.make_node("Conv", ["input.1", "conv1.weight", "conv1.bias"], ["/conv1/Conv_output_0"], strides=[3, 3]),
        helper.make_node("Relu", ["/conv1/Conv_output_0"], ["/Relu_output_0"]),
        helper.make_node("Reshape", ["/Relu_output_0", "/Constant_output_0"], ["/Reshape_output_0"]),
        helper.make_node("Gemm", ["/Reshape_output_0", "fc.weight", "fc.bias"], ["/fc/Gemm_output_0"], transB=1),
    ]
    last = "/fc/Gemm_output_0"
    if ending:
        nodes.append(helper.make_node(ending, [last], ["/last_output_0"], axis=1))
        last = "/last_output_0"
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [batch, 1, 28, 28])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, 10])],
        constants,
    )
    model = helper.make_model(graph, producer_name="pytorch", opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    else:
        onnx.save(model, path)
