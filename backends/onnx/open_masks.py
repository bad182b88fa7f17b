"""The decoder's graph with its masks opened: positions of one run see each other, and all before them.

Made of the artifact's own graph when the first image needs it, so that artifacts stay as they are. Only
what leads to keys and values is left: neither the head nor what only the head is given.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from backends.types import EngineError

_ATTENTION = "GroupQueryAttention"
_BIAS_PLACE = 10  # of the attention node's inputs


def bias_input(window: int) -> str:
    """The graph's input for windows of so many positions: f32 or f16 [1, 1, S, T], added to scores.

    The attention node of the CPU knows windows only in causal runs.
    """
    return f"window_bias.{window}"


def open_masks(data: bytes) -> tuple[bytes, tuple[int, ...]]:
    """The serialised model, and the sizes of its windows. Raises EngineError("unsupported")."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    windows: set[int] = set()
    for node in graph.node:
        if node.op_type == _ATTENTION:
            windows |= _opened(node)
        elif any(each.type == onnx.AttributeProto.GRAPH for each in node.attribute):
            raise EngineError("unsupported", f"the masks of a {node.op_type} cannot be opened")
    _leave_what_writes(graph)
    number = _number_of_caches(graph)
    for window in sorted(windows):
        shape = [1, 1, "S", "T"]
        graph.input.append(helper.make_tensor_value_info(bias_input(window), number, shape))
    return model.SerializeToString(), tuple(sorted(windows))


def _opened(node: onnx.NodeProto) -> set[int]:
    """Makes one attention node look both ways; the size of its window, if it has one."""
    window = 0
    for attribute in list(node.attribute):
        if attribute.name == "local_window_size" and attribute.i > 0:
            window = attribute.i
        if attribute.name in ("local_window_size", "causal"):
            node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("causal", 0))
    if not window:
        return set()
    if len(node.input) > _BIAS_PLACE and node.input[_BIAS_PLACE]:
        raise EngineError(
            "unsupported", "the mask of an attention node with a bias cannot be opened"
        )
    missing = _BIAS_PLACE + 1 - len(node.input)
    node.input.extend([""] * missing)
    node.input[_BIAS_PLACE] = bias_input(window)
    return {window}


def _leave_what_writes(graph: onnx.GraphProto) -> None:
    """Outputs are the keys and values alone; nodes, weights and inputs that nothing asks for go."""
    kept = [output for output in graph.output if output.name.startswith("present")]
    asked = {output.name for output in kept}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if asked.intersection(node.output):
            asked.update(node.input)
            nodes.append(node)
    weights = [each for each in graph.initializer if each.name in asked]
    inputs = [each for each in graph.input if each.name in asked]
    left = helper.make_graph(nodes[::-1], graph.name, inputs, kept, weights)
    graph.CopyFrom(left)


def _number_of_caches(graph: onnx.GraphProto) -> int:
    for each in graph.input:
        if each.name.startswith("past_key"):
            return each.type.tensor_type.elem_type
    return TensorProto.FLOAT
