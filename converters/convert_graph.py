"""An ONNX graph in a GGUF becomes an artifact: checked, written as it is, described.

The graph is a stranger's: it may name no other file, no operator beyond ONNX's own, and no inputs
and outputs but an encoder's. Raises MalformedFile, Unsupported.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import onnx

from converters.artifact import (
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    GRAPH_FILE,
    TOKENIZER_FILE,
    Artifact,
    ForeignGraph,
    variant_folder,
)
from converters.errors import MalformedFile, Unsupported
from converters.foreign_graph import GRAPH_TENSOR, GraphFacts
from converters.progress import Progress
from converters.tensor_reader import TensorReader
from converters.tokenizer import TokenizerFiles

INPUTS = ("attention_mask", "input_ids", "token_type_ids")
OUTPUT = "last_hidden_state"
_OWN_DOMAINS = ("", "ai.onnx")
_MAX_DEPTH = 8


def write_graph(
    facts: GraphFacts,
    reader: TensorReader,
    tokenizer: TokenizerFiles,
    source: str,
    staging: pathlib.Path,
    progress: Progress,
) -> Artifact:
    """All files but `artifact.json`, which the result is to become."""
    progress.start("write", facts.tensor.nbytes)
    data = reader.blocks(facts.tensor, 0, facts.tensor.elements).tobytes()
    inputs = check_graph(data, facts.width)
    (staging / GRAPH_FILE).write_bytes(data)
    (staging / TOKENIZER_FILE).write_bytes(tokenizer.tokenizer_json)
    return Artifact(
        format=ARTIFACT_FORMAT,
        converter=CONVERTER_VERSION,
        source=source,
        variant=variant_folder("onnx-cpu"),
        architecture="onnx-graph",
        model_name=facts.name,
        block_count=0,
        embedding_length=facts.width,
        heads=0,
        kv_heads=(0,),
        head_size=0,
        vocabulary=facts.vocabulary,
        context_length=facts.context_length,
        kv_bytes_per_token=0,
        causal=False,
        pooling=facts.pooling,
        special=tokenizer.special,
        tokenizer_kind=tokenizer.kind,
        pre_tokenizer=tokenizer.pre,
        resident_bytes={"cpu": facts.tensor.nbytes},
        foreign=ForeignGraph(inputs=inputs, output=OUTPUT),
    )


def check_graph(data: bytes, width: int) -> tuple[str, ...]:
    """The graph's inputs, in its order."""
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises what it likes
        raise MalformedFile(f"{GRAPH_TENSOR} is not an ONNX graph: {error}") from error
    for used in model.opset_import:
        if used.domain not in _OWN_DOMAINS:
            raise Unsupported(f"{GRAPH_TENSOR} uses operators of {used.domain[:60]!r}")
    if model.functions:
        raise Unsupported(f"{GRAPH_TENSOR} brings functions of its own")
    _check_parts(model.graph, _MAX_DEPTH)
    names = tuple(value.name for value in model.graph.input)
    if "input_ids" not in names or not set(names) <= set(INPUTS):
        raise Unsupported(f"{GRAPH_TENSOR} takes {', '.join(names)[:200]}")
    for value in model.graph.input:
        if value.type.tensor_type.elem_type != onnx.TensorProto.INT64:
            raise Unsupported(f"{GRAPH_TENSOR}: {value.name} is not of 64-bit integers")
    _check_output(model.graph.output, width)
    return names


def _check_output(outputs: Iterable[onnx.ValueInfoProto], width: int) -> None:
    for value in outputs:
        kind = value.type.tensor_type
        if value.name == OUTPUT and kind.elem_type == onnx.TensorProto.FLOAT:
            last = kind.shape.dim[-1] if kind.shape.dim else None
            if len(kind.shape.dim) == 3 and last is not None and last.dim_value in (0, width):
                return
    raise Unsupported(f"{GRAPH_TENSOR} does not give {OUTPUT} [texts, ids, {width}]")


def _check_parts(graph: onnx.GraphProto, depth: int) -> None:
    """No tensor may lie in another file, wherever it stands."""
    if not depth:
        raise MalformedFile(f"{GRAPH_TENSOR} is nested too deeply")
    sparse = [part for each in graph.sparse_initializer for part in (each.values, each.indices)]
    for tensor in (*graph.initializer, *sparse):
        _check_inside(tensor)
    for node in graph.node:
        if node.domain not in _OWN_DOMAINS:
            raise Unsupported(f"{GRAPH_TENSOR} uses operators of {node.domain[:60]!r}")
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                _check_inside(tensor)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_parts(inner, depth - 1)


def _check_inside(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise Unsupported(f"{GRAPH_TENSOR}: the tensor {tensor.name[:80]!r} lies in another file")
