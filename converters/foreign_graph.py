"""A GGUF that carries another program's ONNX graph: an encoder without a recipe here.

`general.architecture` is "onnx-graph", the tensor `graph.onnx` (I8) the file's bytes; beside them
the tokenizer's keys and what no graph says: pooling, context, width. Reads the header alone.
"""

from __future__ import annotations

import msgspec

from converters.architectures.decoder import POOLINGS
from converters.architectures.header import Header
from converters.architectures.model import Pooling
from converters.errors import MalformedFile, Unsupported
from converters.gguf import GgufFile, TensorInfo

ARCHITECTURE = "onnx-graph"
GRAPH_TENSOR = "graph.onnx"
# What a protobuf can be.
MAX_GRAPH_BYTES = (1 << 31) - 1


class GraphFacts(msgspec.Struct, frozen=True):
    tensor: TensorInfo
    name: str
    width: int
    vocabulary: int
    context_length: int
    pooling: Pooling
    artifact_bytes: int


def is_foreign(file: GgufFile) -> bool:
    return file.architecture == ARCHITECTURE


def read_facts(file: GgufFile, target: str) -> GraphFacts:
    """From the header alone. Raises Unsupported for a target that runs no ONNX graphs."""
    if target != "onnx-cpu":
        raise Unsupported(f"graphs of ONNX run on ONNX Runtime only, not as {target}")
    header = Header(file)
    tensor = header.tensor(GRAPH_TENSOR)
    if tensor.type_name != "I8" or tensor.nbytes > MAX_GRAPH_BYTES or len(file.tensors) != 1:
        raise MalformedFile(f"{GRAPH_TENSOR} is not the bytes of a graph, or not alone")
    number = header.count("pooling_type")
    if number >= len(POOLINGS) or POOLINGS[number] in ("", "rank"):
        raise Unsupported(f"{ARCHITECTURE}.pooling_type {number} is not supported")
    length, width = header.count("context_length"), header.count("embedding_length")
    if not length or not width or not header.token_count:
        raise MalformedFile(f"{ARCHITECTURE}: no context, no width or no vocabulary")
    return GraphFacts(
        tensor=tensor,
        name=header.name,
        width=width,
        vocabulary=header.token_count,
        context_length=length,
        pooling=POOLINGS[number],
        artifact_bytes=tensor.nbytes + 2 * file.data_offset,
    )
