"""ONNX graphs written in ONNX's own notation, and joined to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx


def graph_of(text: str, **constants: Any) -> onnx.GraphProto:
    """Return a graph from ONNX's own notation and the values of its constants."""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return graph


def bridge(sources: list[str], targets: list[str]) -> onnx.GraphProto:
    """Return a graph that hands tensors of one graph on to another under its names, which notation can't spell."""
    pairs = zip(sources, targets, strict=False)
    return onnx.GraphProto(node=[onnx.helper.make_node("Identity", [old], [new]) for old, new in pairs])


def join(parts: list[onnx.GraphProto], name: str) -> onnx.GraphProto:
    """Return graphs, each of which goes on where those before it end, as one, without constants that nobody uses."""
    nodes = [node for part in parts for node in part.node]
    used = {entry for node in nodes for entry in node.input}
    constants = [constant for part in parts for constant in part.initializer if constant.name in used]
    return onnx.helper.make_graph(nodes, name, parts[0].input, parts[-1].output, constants)
