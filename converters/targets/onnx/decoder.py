"""The graph of a causal decoder, from its shape and its layout. Pure: no file is read or written.

Inputs: `inputs_embeds` [B, S, E], `seqlens_k` i32 [B] (ids of the row after this run, minus 1),
`total` i32 (the longest row), `logit_rows` i64 [R] (flat, into B·S), `cos`/`sin` [P, pairs] per rope
table, `past_key.i`/`past_value.i` [B, kv_heads, T, head_size]. Outputs: `present_*` (the engine
binds them to the past's memory), `logits` [R, V], `topk_values`/`topk_ids` [R, K], `lse` [R].
Everything after the last block's attention is computed for the wanted rows only.
"""

from __future__ import annotations

import onnx

from converters.architectures.model import Attention, BlockShape, FeedForward, ModelShape
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.layout import Layout
from converters.targets.onnx.linear import linear

TOP_K = 64
RopeInputs = dict[str, list[str]]


def decoder_model(model: ModelShape, layout: Layout) -> onnx.ModelProto:
    return _Decoder(model, layout).build()


def top_k(model: ModelShape) -> int:
    return min(TOP_K, model.vocabulary)


class _Stream:
    """The residual stream: `value`, and a `branch` that is not added to it yet."""

    def __init__(self, value: str, branch: str = "") -> None:
        self.value = value
        self.branch = branch


class _Decoder:
    """One build. The methods follow the data from the embeddings to the logits."""

    def __init__(self, model: ModelShape, layout: Layout) -> None:
        self._model = model
        self._layout = layout
        self._graph = GraphBuilder()

    def build(self) -> onnx.ModelProto:
        stream = _Stream(self._inputs())
        ropes = self._rope_inputs()
        last = len(self._model.blocks) - 1
        for index, block in enumerate(self._model.blocks):
            self._graph.scope = f"blk.{index}"
            attended = self._attention_branch(stream, index, block, ropes)
            if index == last:
                attended = self._wanted_rows(stream, attended)
            self._finish_block(stream, index, block, attended)
        self._graph.scope = ""
        self._head(self._norm(stream, self._model.output_norm, "final_norm"))
        return self._graph.model(self._model.architecture)

    def _inputs(self) -> str:
        graph = self._graph
        graph.input("inputs_embeds", "float32", ["B", "S", self._model.embedding_length])
        graph.input("seqlens_k", "int32", ["B"])
        graph.input("total", "int32", [])
        graph.input("logit_rows", "int64", ["R"])
        return "inputs_embeds"

    def _rope_inputs(self) -> RopeInputs:
        """Table name → [cos, sin]; "" → none."""
        ropes: RopeInputs = {"": ["", ""]}
        for name, recipe in self._model.rope.items():
            suffix = "" if name == "global" else f"_{name}"
            shape: list[str | int] = ["P", recipe.dimensions // 2]
            ropes[name] = [
                self._graph.input(f"{part}{suffix}", "float32", shape) for part in ("cos", "sin")
            ]
        return ropes

    # ---- attention ----

    def _attention_branch(
        self, stream: _Stream, index: int, block: BlockShape, ropes: RopeInputs
    ) -> str:
        """[B, S, heads · head_size], before the output projection."""
        x = self._norm(stream, block.attention_norm, "attn_norm")
        attention = block.attention
        query, key, value = self._projections(x, index, attention)
        inputs = [query, key, value, *self._caches(index, attention), "seqlens_k", "total"]
        inputs += [*ropes[attention.rope], "", "", self._optional_weight(attention.sinks)]
        outputs = ["attn", f"present_key.{index}", f"present_value.{index}"]
        outputs[0] = self._graph.scoped(outputs[0])
        return self._graph.nodes(
            "GroupQueryAttention",
            inputs,
            outputs,
            domain=MICROSOFT,
            num_heads=attention.heads,
            kv_num_heads=attention.kv_heads,
            scale=attention.scale,
            **_attention_options(attention),
        )[0]

    def _caches(self, index: int, attention: Attention) -> list[str]:
        shape: list[str | int] = ["B", attention.kv_heads, "T", attention.head_size]
        names = [f"key.{index}", f"value.{index}"]
        for name in names:
            self._graph.output(f"present_{name}", "float32", shape)
        return [self._graph.input(f"past_{name}", "float32", shape) for name in names]

    def _projections(self, x: str, index: int, attention: Attention) -> list[str]:
        """[query, key, value], or [all three packed, "", ""] where nothing stands between."""
        stem = f"blk.{index}.attn"
        if f"{stem}_qkv" not in self._layout.matrices:
            query, key, value = (self._linear(x, f"{stem}_{part}") for part in "qkv")
        else:
            packed = self._linear(x, f"{stem}_qkv")
            if not attention.query_norm:
                return [packed, "", ""]
            query, key, value = self._cut_projections(packed, attention)
        return [
            self._head_norm(query, attention.query_norm, attention.heads, attention),
            self._head_norm(key, attention.key_norm, attention.kv_heads, attention),
            value,
        ]

    def _cut_projections(self, packed: str, attention: Attention) -> list[str]:
        widths = [attention.heads, attention.kv_heads, attention.kv_heads]
        lengths = self._graph.integers(*(width * attention.head_size for width in widths))
        names = [self._graph.scoped(part) for part in "qkv"]
        return self._graph.nodes("Split", [packed, lengths], names, axis=-1)

    def _head_norm(self, x: str, norm: str, heads: int, attention: Attention) -> str:
        """Per head, or over all heads where the norm is as wide as they are together."""
        if not norm:
            return x
        width = self._layout.vectors[norm].piece.shape[0]
        label = norm.removesuffix(".weight").rpartition(".")[2]
        if width == heads * attention.head_size and heads > 1:
            return self._plain_norm(x, norm, label)
        graph = self._graph
        per_head = graph.integers(0, 0, heads, attention.head_size)
        cut = graph.node("Reshape", [x, per_head], f"{label}.heads")
        joined = graph.integers(0, 0, heads * attention.head_size)
        return graph.node("Reshape", [self._plain_norm(cut, norm, label), joined], f"{label}.all")

    # ---- the rest of a block ----

    def _wanted_rows(self, stream: _Stream, attended: str) -> str:
        """Narrows stream and branch from [B, S, ·] to [1, R, ·]; R may be 0."""
        stream.value = self._gathered(self._settled(stream), "residual")
        return self._gathered(attended, "attn")

    def _gathered(self, x: str, label: str) -> str:
        graph = self._graph
        flat = graph.node("Flatten", [x], f"{label}.flat", axis=2)
        rows = graph.node("Gather", [flat, "logit_rows"], f"{label}.rows", axis=0)
        return graph.node("Unsqueeze", [rows, graph.integers(0)], f"{label}.wanted")

    def _finish_block(self, stream: _Stream, index: int, block: BlockShape, attended: str) -> None:
        """Output projection and feed-forward network, each added to the stream."""
        branch = self._linear(attended, f"blk.{index}.attn_output")
        self._add(stream, branch, block.post_attention_norm, block.residual_scale)
        x = self._norm(stream, block.feed_forward_norm, "ffn_norm")
        branch = self._feed_forward(x, index, block.feed_forward)
        self._add(stream, branch, block.post_feed_forward_norm, block.residual_scale)

    def _feed_forward(self, x: str, index: int, shape: FeedForward) -> str:
        stem, graph = f"blk.{index}.ffn", self._graph
        up = self._linear(x, f"{stem}_up")
        if not (shape.gate or shape.is_up_fused):
            return self._linear(_activated(graph, up, shape), f"{stem}_down")
        if shape.is_up_fused:
            halves = [graph.scoped("ffn_gate_half"), graph.scoped("ffn_up_half")]
            gate, up = graph.nodes("Split", [up], halves, axis=-1, num_outputs=2)
        else:
            gate = self._linear(x, f"{stem}_gate")
        inner = graph.node("Mul", [_activated(graph, gate, shape), up], "ffn_inner")
        return self._linear(inner, f"{stem}_down")

    def _add(self, stream: _Stream, branch: str, post_norm: str, scale: float) -> None:
        if post_norm:
            label = post_norm.removesuffix(".weight").rpartition(".")[2]
            branch = self._plain_norm(branch, post_norm, label)
        if scale != 1.0:
            factor = self._graph.number(scale)
            branch = self._graph.node("Mul", [branch, factor], f"{branch}.scaled")
        stream.value, stream.branch = self._settled(stream), branch

    # ---- the head ----

    def _head(self, x: str) -> None:
        """From x [1, R, E] to logits, the likeliest ids and the log-sum-exp of each row."""
        graph, vocabulary, likeliest = self._graph, self._model.vocabulary, top_k(self._model)
        squeezed = graph.node("Squeeze", [self._linear(x, "output"), graph.integers(0)], "head")
        logits = self._shaped_logits(squeezed)
        graph.nodes("Identity", [logits], [graph.output("logits", "float32", ["R", vocabulary])])
        graph.output("topk_values", "float32", ["R", likeliest])
        graph.output("topk_ids", "int64", ["R", likeliest])
        top = ["topk_values", "topk_ids"]
        graph.nodes("TopK", [logits, graph.integers(likeliest)], top, axis=-1, largest=1, sorted=1)
        lse = graph.output("lse", "float32", ["R"])
        graph.nodes("ReduceLogSumExp", [logits, graph.integers(1)], [lse], keepdims=0)

    def _shaped_logits(self, logits: str) -> str:
        graph, cap = self._graph, self._model.logit_softcap
        if self._model.logit_scale != 1.0:
            factor = graph.number(self._model.logit_scale)
            logits = graph.node("Mul", [logits, factor], "scaled_logits")
        if cap:
            divided = graph.node("Div", [logits, graph.number(cap)], "logits_over_cap")
            bent = graph.node("Tanh", [divided], "bent_logits")
            logits = graph.node("Mul", [bent, graph.number(cap)], "capped_logits")
        return logits

    # ---- small parts ----

    def _linear(self, x: str, name: str) -> str:
        return linear(self._graph, self._layout, x, name)

    def _optional_weight(self, name: str) -> str:
        return self._graph.weight(self._layout.vectors[name].piece) if name else ""

    def _settled(self, stream: _Stream) -> str:
        """The stream with its open branch added."""
        if stream.branch:
            total = f"{stream.branch}.added"
            stream.value = self._graph.nodes("Add", [stream.value, stream.branch], [total])[0]
            stream.branch = ""
        return stream.value

    def _norm(self, stream: _Stream, norm: str, label: str) -> str:
        """The normed stream. An open branch is added in the same pass over memory."""
        if not norm:
            return self._settled(stream)
        if not stream.branch:
            return self._plain_norm(stream.value, norm, label)
        weight, graph = self._optional_weight(norm), self._graph
        normed, total = graph.scoped(label), f"{stream.branch}.added"
        graph.nodes(
            "SkipSimplifiedLayerNormalization",
            [stream.value, stream.branch, weight],
            [normed, "", "", total],
            domain=MICROSOFT,
            epsilon=self._model.epsilon,
        )
        stream.value, stream.branch = total, ""
        return normed

    def _plain_norm(self, x: str, norm: str, label: str) -> str:
        return self._graph.node(
            "RMSNormalization",
            [x, self._optional_weight(norm)],
            label,
            axis=-1,
            epsilon=self._model.epsilon,
        )


def _attention_options(attention: Attention) -> dict[str, int | float]:
    options: dict[str, int | float] = {}
    if attention.rope:
        options |= {"do_rotary": 1, "rotary_interleaved": int(attention.interleaved)}
    if attention.window:
        options["local_window_size"] = attention.window
    if attention.softcap:
        options["softcap"] = attention.softcap
    return options


def _activated(graph: GraphBuilder, x: str, shape: FeedForward) -> str:
    match shape.activation:
        case "silu":  # x · sigmoid(x) in one pass
            return graph.node("QuickGelu", [x], "ffn_silu", domain=MICROSOFT, alpha=1.0)
        case "gelu":
            return graph.node("Gelu", [x], "ffn_gelu", approximate="none")
        case "gelu_tanh":
            return graph.node("Gelu", [x], "ffn_gelu", approximate="tanh")
