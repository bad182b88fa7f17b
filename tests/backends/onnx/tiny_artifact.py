"""A random two-block model written straight to the graph contract, without a converter.

Small enough to run in microseconds, and made of the same nodes as the real ones: MatMulNBits at
accuracy level 4, GroupQueryAttention, the head on gathered positions.
"""

from __future__ import annotations

import pathlib

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.artifact import (
    ARTIFACT_FILE,
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    GRAPH_FILE,
    WEIGHTS_FILE,
    Artifact,
    CodedTable,
    OnnxGraph,
    RopeTable,
    SpecialTokens,
)

EMBEDDING, HEADS, KV_HEADS, HEAD_SIZE, FEED_FORWARD = 64, 4, 2, 16, 128
VOCABULARY, BLOCKS, CONTEXT = 320, 2, 512
END_ID = 7
_QUANTISED_BLOCK = 32


class _Graph:
    """Collects nodes and initializers; weights are random with a scale that keeps activations sane."""

    def __init__(self, seed: int, accuracy_level: int) -> None:
        self.random = np.random.default_rng(seed)
        self.accuracy_level = accuracy_level
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: list[str], outputs: list[str], **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]

    def linear(self, name: str, source: str, rows: int, columns: int, *, bits: int = 4) -> str:
        groups = columns // _QUANTISED_BLOCK
        codes = self.random.integers(0, 256, (rows, groups, _QUANTISED_BLOCK * bits // 8), np.uint8)
        spread = 2.0 ** (bits - 1) * np.sqrt(columns)
        scales = (self.random.random((rows, groups)) + 0.5).astype(np.float32) * 1.5 / spread
        inputs = [source, self.constant(f"{name}_codes", codes)]
        inputs.append(self.constant(f"{name}_scales", scales.astype(np.float32)))
        return self.node(
            "MatMulNBits", inputs, [name], domain="com.microsoft", K=columns, N=rows, bits=bits,
            block_size=_QUANTISED_BLOCK, accuracy_level=self.accuracy_level if bits == 4 else 4,
        )  # fmt: skip

    def norm(self, name: str, source: str) -> str:
        weight = self.constant(f"{name}_weight", np.ones(EMBEDDING, np.float32))
        return self.node(
            "SimplifiedLayerNormalization", [source, weight], [name], epsilon=1e-5, axis=-1
        )

    def block(self, index: int, source: str) -> str:
        normed = self.norm(f"attention_norm{index}", source)
        width = (HEADS + 2 * KV_HEADS) * HEAD_SIZE
        packed = self.linear(f"qkv{index}", normed, width, EMBEDDING)
        attended = self.node(
            "GroupQueryAttention",
            [packed, "", "", f"past_key.{index}", f"past_value.{index}", "seqlens_k", "total", "cos", "sin"],
            [f"attended{index}", f"present_key.{index}", f"present_value.{index}"],
            domain="com.microsoft", num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1,
            rotary_interleaved=1,
        )  # fmt: skip
        output = self.linear(f"output{index}", attended, EMBEDDING, HEADS * HEAD_SIZE)
        middle = self.node("Add", [source, output], [f"middle{index}"])
        normed = self.norm(f"feed_norm{index}", middle)
        gate = self.linear(f"gate{index}", normed, FEED_FORWARD, EMBEDDING)
        sigmoid = self.node("Sigmoid", [gate], [f"sigmoid{index}"])
        product = self.node("Mul", [gate, sigmoid], [f"product{index}"])
        down = self.linear(f"down{index}", product, EMBEDDING, FEED_FORWARD)
        return self.node("Add", [middle, down], [f"block{index}"])

    def head(self, source: str, top_k: int) -> None:
        flat_shape = self.constant("flat_shape", np.array([-1, EMBEDDING], np.int64))
        flat = self.node("Reshape", [source, flat_shape], ["flat"])
        wanted = self.node("Gather", [flat, "logit_rows"], ["wanted"], axis=0)
        self.linear("logits", self.norm("output_norm", wanted), VOCABULARY, EMBEDDING, bits=8)
        count = self.constant("top_k_count", np.array([top_k], np.int64))
        self.node("TopK", ["logits", count], ["topk_values", "topk_ids"], axis=-1)
        axes = self.constant("vocabulary_axis", np.array([1], np.int64))
        self.node("ReduceLogSumExp", ["logits", axes], ["lse"], keepdims=0)


def _value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(seed: int, top_k: int, accuracy_level: int) -> onnx.ModelProto:
    graph = _Graph(seed, accuracy_level)
    source = "inputs_embeds"
    fp32, int64, int32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
    inputs = [
        _value("inputs_embeds", fp32, ["B", "S", EMBEDDING]), _value("seqlens_k", int32, ["B"]),
        _value("total", int32, []), _value("logit_rows", int64, ["R"]),
        _value("cos", fp32, ["P", HEAD_SIZE // 2]), _value("sin", fp32, ["P", HEAD_SIZE // 2]),
    ]  # fmt: skip
    outputs = [
        _value("logits", fp32, ["R", VOCABULARY]), _value("topk_values", fp32, ["R", top_k]),
        _value("topk_ids", int64, ["R", top_k]), _value("lse", fp32, ["R"]),
    ]  # fmt: skip
    for index in range(BLOCKS):
        source = graph.block(index, source)
        for kind in ("key", "value"):
            shape = ["B", KV_HEADS, "T", HEAD_SIZE]
            inputs.append(_value(f"past_{kind}.{index}", fp32, shape))
            outputs.append(_value(f"present_{kind}.{index}", fp32, shape))
    graph.head(source, top_k)
    proto = helper.make_graph(graph.nodes, "tiny", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=10)


def write_tiny_artifact(
    folder: pathlib.Path,
    *,
    seed: int = 0,
    top_k: int = 64,
    accuracy_level: int = 4,
    context_length: int = CONTEXT,
    sections: tuple[int, int, int] | None = None,
) -> Artifact:
    """Writes model.onnx, weights.bin and artifact.json into `folder`, which is made.

    `sections` of the 8 pairs turn with time, row and column.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_model(seed, top_k, accuracy_level), folder / GRAPH_FILE)
    table = np.random.default_rng(seed + 1).standard_normal((VOCABULARY, EMBEDDING), np.float32)
    (folder / WEIGHTS_FILE).write_bytes(table.tobytes())
    embedding = CodedTable(rows=VOCABULARY, columns=EMBEDDING, bits=32, codes_offset=0)
    steps = np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE
    frequencies = tuple((10000.0**-steps).tolist())
    artifact = Artifact(
        format=ARTIFACT_FORMAT, converter=CONVERTER_VERSION, source="0" * 64, variant="onnx-cpu-f1",
        architecture="llama", block_count=BLOCKS, embedding_length=EMBEDDING, heads=HEADS,
        kv_heads=(KV_HEADS,), head_size=HEAD_SIZE, vocabulary=VOCABULARY,
        context_length=context_length,
        kv_bytes_per_token=BLOCKS * 2 * KV_HEADS * HEAD_SIZE * 4,
        rope={"global": RopeTable(inverse_frequencies=frequencies, sections=sections)},
        special=SpecialTokens(end_ids=(END_ID,)),
        onnx=OnnxGraph(embedding=embedding, top_k=top_k), precise=accuracy_level == 0,
    )  # fmt: skip
    (folder / ARTIFACT_FILE).write_bytes(msgspec.json.encode(artifact))
    return artifact
