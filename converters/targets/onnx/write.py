"""Writes `model.onnx` as planned, and reads it back. Decides nothing."""

from __future__ import annotations

import pathlib

import onnx

from converters.architectures.model import ModelShape
from converters.artifact import GRAPH_FILE, WEIGHTS_FILE
from converters.errors import Unsupported
from converters.targets.onnx.decoder import decoder_model, top_k
from converters.targets.onnx.encoder import encoder_model, vector_size
from converters.targets.onnx.layout import Layout
from converters.targets.onnx.parts import FUSED_NORM
from converters.targets.onnx.recurrent import row_states

__all__ = [
    "check_graph",
    "check_places",
    "graph_of",
    "row_states",
    "top_k",
    "vector_size",
    "verify",
    "write_graph",
]


def write_graph(model: ModelShape, layout: Layout, folder: pathlib.Path) -> None:
    (folder / GRAPH_FILE).write_bytes(graph_of(model, layout).SerializeToString())


def graph_of(model: ModelShape, layout: Layout) -> onnx.ModelProto:
    build = encoder_model if model.encoder else decoder_model
    return build(model, layout)


def check_graph(graph: onnx.ModelProto) -> None:
    """As `onnx.checker`, for a graph whose weights lie in several folders. Raises when not valid."""
    bare = _standard(graph)
    del bare.graph.initializer[:]
    for tensor in graph.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        bare.graph.input.append(value)
    onnx.checker.check_model(bare)


def _standard(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the runtime's own name for a standard operator is the standard's."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for node in copy.graph.node:
        if node.op_type == FUSED_NORM:
            node.op_type = "RMSNormalization"
    return copy


def check_places(graph: onnx.ModelProto, base: onnx.ModelProto) -> None:
    """Raises Unsupported unless `graph` reads the weights where the base's own graph does."""
    known = _places(base)
    for name, place in _places(graph).items():
        if known.get(name) != place:
            raise Unsupported(
                f"the base's artifact was made by another version, and has {name!r} elsewhere:"
                " remove the artifact, so that it is made again"
            )


def _places(graph: onnx.ModelProto) -> dict[str, tuple[object, ...]]:
    """Type, shape, offset and length of what lies in the weights, by name."""
    places: dict[str, tuple[object, ...]] = {}
    for tensor in graph.graph.initializer:
        stored = {entry.key: entry.value for entry in tensor.external_data}
        if stored.get("location") == WEIGHTS_FILE:
            extent = stored["offset"], stored["length"]
            places[tensor.name] = (tensor.data_type, tuple(tensor.dims), *extent)
    return places


def verify(layout: Layout, folder: pathlib.Path) -> None:
    """Raises when the graph is not valid ONNX or the weights have another size than planned."""
    weights_bytes = (folder / WEIGHTS_FILE).stat().st_size
    if weights_bytes != layout.weights_bytes:
        raise RuntimeError(f"{WEIGHTS_FILE} has {weights_bytes} bytes")
    check_graph(onnx.load(folder / GRAPH_FILE, load_external_data=False))
