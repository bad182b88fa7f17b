"""The graph of a model that gives vectors: one padded batch in, one vector per text out.

Inputs: `inputs_embeds` [B, S, E], texts padded on the right with anything finite; `lengths` i32 [B],
ids of each text, at least 1; `cos`/`sin` [P, pairs], P >= S, per rope table. Output: `pooled`
[B, width], not normalised ("rank": one score or one probability per label), or `hidden` [B, S, E]
where the model has no pooling; hidden states of padding mean nothing. Nothing is cached. With a
layout in float16 the rotary tables are that too; other inputs, outputs and pooling stay fp32.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from converters.architectures.mixers import Attention
from converters.architectures.model import Encoder, ModelShape
from converters.targets.onnx.attention import Cached, Context, any_rotates_apart, rope_inputs
from converters.targets.onnx.blocks import add_block
from converters.targets.onnx.layout import Layout
from converters.targets.onnx.parts import Parts, Stream

# What a masked score gets; far below any real one, far from the number type's end.
MASKED = {"float32": -1e30, "float16": -3e4}


def encoder_model(model: ModelShape, layout: Layout) -> onnx.ModelProto:
    assert model.encoder is not None
    return _EncoderGraph(model, model.encoder, layout).build()


def vector_size(model: ModelShape) -> int:
    """Numbers in a pooled vector."""
    if model.encoder and model.encoder.projections:
        return model.encoder.projections[-1].rows
    return model.embedding_length


class _EncoderGraph:
    """One build. The methods follow the data from the embeddings to the vectors."""

    def __init__(self, model: ModelShape, encoder: Encoder, layout: Layout) -> None:
        self._model = model
        self._encoder = encoder
        self._parts = Parts(model, layout)
        self._graph = self._parts.graph
        self._biases: dict[tuple[float, int, int], str] = {}

    def build(self) -> onnx.ModelProto:
        graph, parts = self._graph, self._parts
        graph.input("inputs_embeds", "float32", ["B", "S", self._model.embedding_length])
        graph.input("lengths", "int32", ["B"])
        self._count = graph.node("Shape", ["inputs_embeds"], "count", start=1, end=2)
        self._measure()
        stream = Stream(self._embedded())
        context = self._context()
        for index, block in enumerate(self._model.blocks):
            graph.scope = f"blk.{index}"
            add_block(parts, context, stream, index, block)
        graph.scope = ""
        self._finish(parts.stream_norm(stream, self._model.output_norm))
        return graph.model(self._model.architecture)

    def _measure(self) -> None:
        """`_steps` i64 [S] counts the ids of a text from 0."""
        graph = self._graph
        scalar = graph.node("Squeeze", [self._count], "count_scalar")
        ends = [graph.scalar(0), scalar, graph.scalar(1)]
        self._steps = graph.node("Range", ends, "steps")

    def _embedded(self) -> str:
        """What the first block reads."""
        graph, parts, encoder = self._graph, self._parts, self._encoder
        x = graph.as_activations("inputs_embeds", "embeds")
        if encoder.token_types:
            x = graph.node("Add", [x, parts.vector(encoder.token_types)], "with_token_type")
        if encoder.positions:
            table = parts.vector(encoder.positions)
            bounds = [graph.integers(0), self._count, graph.integers(0)]
            x = graph.node("Add", [x, graph.node("Slice", [table, *bounds], "places")], "placed")
        return parts.norm(x, encoder.embedding_norm) if encoder.embedding_norm else x

    def _context(self) -> Context:
        graph = self._graph
        one = graph.constant("i32.1", np.array(1, np.int32))
        total = graph.node("Cast", [self._count], "total_vector", to=onnx.TensorProto.INT32)
        return Context(
            lengths=graph.node("Sub", ["lengths", one], "lengths_less_1"),
            total=graph.node("Squeeze", [total], "total"),
            ropes=rope_inputs(self._parts),
            cached=lambda _index, _heads, _size: Cached(),
            bias=self._bias,
            positions=graph.integers(0) if any_rotates_apart(self._model) else "",
            is_causal=self._encoder.is_causal,
        )

    # ---- what is added to scores ----

    def _bias(self, attention: Attention) -> str:
        """[1, heads or 1, S, S] by distance: ALiBi, or a window to both sides; once per kind."""
        has_window = attention.window and not self._encoder.is_causal
        if not (has_window or attention.alibi_bias):
            return ""
        key = (attention.alibi_bias, attention.heads, attention.window)
        if key not in self._biases:
            scope, self._graph.scope = self._graph.scope, ""
            self._biases[key] = (
                self._alibi(attention) if attention.alibi_bias else self._window(attention.window)
            )
            self._graph.scope = scope
        return self._biases[key]

    def _distances(self) -> str:
        """fp32 [1, 1, S, S]: |i - j|."""
        graph = self._graph
        steps = graph.node("Cast", [self._steps], "steps_fp32", to=onnx.TensorProto.FLOAT)
        column = graph.node("Unsqueeze", [steps, graph.integers(0, 1, 3)], "steps_column")
        row = graph.node("Unsqueeze", [steps, graph.integers(0, 1, 2)], "steps_row")
        return graph.node("Abs", [graph.node("Sub", [column, row], "offsets")], "distances")

    def _alibi(self, attention: Attention) -> str:
        slopes = -np.array(alibi_slopes(attention.heads, attention.alibi_bias), np.float32)
        factor = self._graph.constant("alibi_slopes", slopes.reshape(1, -1, 1, 1))
        bias = self._graph.node("Mul", [self._distances(), factor], "alibi")
        return self._graph.as_activations(bias, "alibi_half")

    def _window(self, window: int) -> str:
        graph = self._graph
        reach = graph.number(float(window // 2), "float32")
        outside = graph.node("Greater", [self._distances(), reach], "outside_window")
        masked, seen = graph.number(MASKED[graph.item]), graph.number(0.0)
        return graph.node("Where", [outside, masked, seen], "window_mask")

    # ---- pooling ----

    def _finish(self, x: str) -> None:
        graph, model = self._graph, self._model
        x = graph.as_float32(x, "hidden_wide")
        if not self._encoder.pooling:
            shape: list[str | int] = ["B", "S", model.embedding_length]
            graph.nodes("Identity", [x], [graph.output("hidden", "float32", shape)])
            return
        pooled = self._projected(self._pooled(x))
        output = graph.output("pooled", "float32", ["B", vector_size(model)])
        graph.nodes("Identity", [pooled], [output])

    def _pooled(self, x: str) -> str:
        """[B, E]."""
        encoder, graph = self._encoder, self._graph
        if encoder.pooling == "mean":
            return self._mean(x)
        # A causal model that ranks has read everything only at its last id.
        is_last = encoder.pooling == "last" or (encoder.pooling == "rank" and encoder.is_causal)
        if not is_last:
            return graph.node("Gather", [x, graph.scalar(0)], "first_ids", axis=1)
        lengths = graph.node("Cast", ["lengths"], "lengths_i64", to=onnx.TensorProto.INT64)
        last = graph.node("Sub", [lengths, graph.scalar(1)], "last_places")
        column = graph.node("Unsqueeze", [last, graph.integers(1)], "last_column")
        return graph.node("GatherND", [x, column], "last_ids", batch_dims=1)

    def _mean(self, x: str) -> str:
        """Padding is replaced, not multiplied by 0: it may hold anything."""
        graph = self._graph
        lengths = graph.node("Cast", ["lengths"], "lengths_i64", to=onnx.TensorProto.INT64)
        column = graph.node("Unsqueeze", [lengths, graph.integers(1)], "lengths_column")
        is_real = graph.node("Less", [self._steps, column], "is_real")
        mask = graph.node("Unsqueeze", [is_real, graph.integers(2)], "is_real_column")
        real = graph.node("Where", [mask, x, graph.number(0.0, "float32")], "real")
        summed = graph.node("ReduceSum", [real, graph.integers(1)], "summed", keepdims=0)
        counts = graph.node("Cast", [column], "counts", to=onnx.TensorProto.FLOAT)
        return graph.node("Div", [summed, counts], "mean")

    def _projected(self, x: str) -> str:
        encoder, graph = self._encoder, self._graph
        for place, projection in enumerate(encoder.projections):
            if place and encoder.has_tanh:
                x = graph.node("Tanh", [x], f"tanh.{place}")
            # The products of quantised weights want three axes.
            cut = graph.node("Unsqueeze", [x, graph.integers(0)], f"pooled.{place}")
            product = self._parts.linear(graph.as_activations(cut, f"half.{place}"), projection)
            joined = graph.node("Squeeze", [product, graph.integers(0)], f"projected.{place}")
            x = graph.as_float32(joined, f"wide.{place}")
        if encoder.pooling == "rank" and encoder.has_tanh and _ends_in_tanh(encoder):
            x = graph.node("Tanh", [x], "tanh.last")
        return graph.node("Softmax", [x], "probabilities", axis=-1) if encoder.has_softmax else x


def _ends_in_tanh(encoder: Encoder) -> bool:
    """A lone `cls` is bent, a lone or last `cls.output` is not."""
    return len(encoder.projections) == 1 and encoder.projections[0].stem == "cls"


def alibi_slopes(heads: int, bias: float) -> list[float]:
    """Of each head; ggml's `soft_max_ext`: powers of 2^(-bias/n), n the power of two up to heads."""
    whole = 1 << (heads.bit_length() - 1)
    first, second = 2.0 ** (-bias / whole), 2.0 ** (-bias / 2 / whole)
    return [
        math.pow(first, head + 1) if head < whole else math.pow(second, 2 * (head - whole) + 1)
        for head in range(heads)
    ]
