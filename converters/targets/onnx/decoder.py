"""The graph of a causal decoder, from its shape and its layout. Pure: no file is read or written.

Inputs: `inputs_embeds` [B, S, E] (behind them what blocks have of their own for each id, or what
images add after the first blocks), `seqlens_k` i32 [B] (ids of the row after this run, minus 1),
`total` i32 (the longest row), `logit_rows` i64 [R] (flat, into B·S), `cos`/`sin` [P, pairs] per rope
table (`_local` for that one), per attending block `past_key.i`/`past_value.i` [B, kv_heads, T,
head_size], and the states of `recurrent`. Outputs: `present_*` (the engine
binds them to the past's memory), `logits` [R, V], `topk_values`/`topk_ids` [R, K], `lse` [R],
`hidden` [R, E], which the head was given.
With a layout in float16, rotary tables and KV are that too; all other inputs and outputs stay fp32.
Everything after the last block's mixer is computed for the wanted rows only.
"""

from __future__ import annotations

import onnx

from converters.architectures.model import ModelShape
from converters.targets.onnx.altup import Streams, open_streams
from converters.targets.onnx.attention import Cached, Context, any_rotates_apart, rope_inputs
from converters.targets.onnx.blocks import add_block
from converters.targets.onnx.layout import Layout
from converters.targets.onnx.linear import linear
from converters.targets.onnx.parts import Parts, Stream

TOP_K = 64


def decoder_model(model: ModelShape, layout: Layout) -> onnx.ModelProto:
    return _Decoder(model, layout).build()


def top_k(model: ModelShape) -> int:
    return min(TOP_K, model.vocabulary)


class _Decoder:
    """One build. The methods follow the data from the embeddings to the logits."""

    def __init__(self, model: ModelShape, layout: Layout) -> None:
        self._model = model
        self._parts = Parts(model, layout)
        self._graph = self._parts.graph

    def build(self) -> onnx.ModelProto:
        parts, embeds = self._parts, self._inputs()
        context = self._context()
        if self._model.altup:
            return self._build_streams(context, open_streams(parts, self._model.altup, embeds))
        first, *deeper = self._cut_deepstack(embeds)
        stream = Stream(first)
        last = len(self._model.blocks) - 1
        for index, block in enumerate(self._model.blocks):
            self._graph.scope = f"blk.{index}"
            narrowed = self._narrowed if index == last else None
            add_block(parts, context, stream, index, block, narrowed)
            if index < len(deeper):
                added = narrowed(deeper[index], "deepstack") if narrowed else deeper[index]
                self._add_to_branch(stream, added)
        self._graph.scope = ""
        self._head(parts.stream_norm(stream, self._model.output_norm))
        return self._graph.model(self._model.architecture)

    def _cut_deepstack(self, embeds: str) -> list[str]:
        """[what the first block reads, what images add after the first, …], each [B, S, E]."""
        count, graph = 1 + self._model.deepstack, self._graph
        if count == 1:
            return [embeds]
        widths = graph.integers(*[self._model.embedding_length] * count)
        names = ["embeds_own", *(f"deepstack.{index}" for index in range(count - 1))]
        return graph.nodes("Split", [embeds, widths], names, axis=-1)

    def _add_to_branch(self, stream: Stream, added: str) -> None:
        """To the open branch, which the next norm adds: what text gives (zeros) then changes no bit."""
        total = self._graph.scoped("deepstacked")
        self._graph.nodes("Add", [stream.branch or stream.value, added], [total])
        if stream.branch:
            stream.branch = total
        else:
            stream.value = total

    def _build_streams(self, context: Context, streams: Streams) -> onnx.ModelProto:
        """As `build`, where the residual is several streams."""
        last = len(self._model.blocks) - 1
        for index, block in enumerate(self._model.blocks):
            self._graph.scope = f"blk.{index}"
            streams.pass_block(context, index, block, self._narrowed if index == last else None)
        self._graph.scope = ""
        assert self._model.output_norm is not None
        self._head(self._parts.norm(streams.merged(), self._model.output_norm))
        return self._graph.model(self._model.architecture)

    def _inputs(self) -> str:
        graph = self._graph
        altup, width = self._model.altup, self._model.embedding_length
        width *= 1 + self._model.deepstack
        width += altup.table.columns if altup else 0
        graph.input("inputs_embeds", "float32", ["B", "S", width])
        graph.input("seqlens_k", "int32", ["B"])
        graph.input("total", "int32", [])
        graph.input("logit_rows", "int64", ["R"])
        return graph.as_activations("inputs_embeds", "embeds")

    def _context(self) -> Context:
        asks = any_rotates_apart(self._model) or self._model.temperature is not None
        positions = self._positions() if asks else ""
        return Context(
            lengths="seqlens_k",
            total="total",
            ropes=rope_inputs(self._parts),
            cached=self._cached,
            bias=lambda _attention: "",
            positions=positions,
            query_factor=self._query_factor(positions),
        )

    def _cached(self, index: int, heads: int, size: int) -> Cached:
        graph = self._graph
        shape: list[str | int] = ["B", heads, "T", size]
        names = [f"key.{index}", f"value.{index}"]
        present = [graph.output(f"present_{name}", graph.item, shape) for name in names]
        past = [graph.input(f"past_{name}", graph.item, shape) for name in names]
        return Cached(
            past_key=past[0], past_value=past[1], present_key=present[0], present_value=present[1]
        )

    def _query_factor(self, positions: str) -> str:
        """[B, S, 1]: 1 + strength · ln(1 + floor(position / length))."""
        temperature, graph = self._model.temperature, self._graph
        if temperature is None:
            return ""
        length = graph.number(float(temperature.length), "float32")
        numbers = graph.node("Cast", [positions], "positions_fp32", to=onnx.TensorProto.FLOAT)
        ratio = graph.node("Div", [numbers, length], "position_ratio")
        turns = graph.node("Floor", [ratio], "position_turns")
        one = graph.number(1.0, "float32")
        grown = graph.node("Add", [turns, one], "position_turns_and_1")
        logarithm = graph.node("Log", [grown], "position_logarithm")
        scaled = graph.node(
            "Mul", [logarithm, graph.number(temperature.strength, "float32")], "position_strength"
        )
        whole = graph.node("Add", [scaled, one], "query_factor")
        factor = graph.as_activations(whole, "query_factor_half")
        return graph.node("Unsqueeze", [factor, graph.integers(2)], "query_factors")

    def _positions(self) -> str:
        """fp32 [B, S]: seqlens_k + 1, and to it -S, 1-S, … -1.

        What is made of the shape goes into Range alone: a GPU would copy it anywhere else.
        """
        graph = self._graph
        length = graph.node("Shape", ["inputs_embeds"], "chunk_length", start=1, end=2)
        before = graph.node("Neg", [graph.node("Squeeze", [length], "chunk_size")], "chunk_back")
        steps = graph.node("Range", [before, graph.scalar(0), graph.scalar(1)], "chunk_steps")
        lengths = graph.node("Cast", ["seqlens_k"], "row_lengths", to=onnx.TensorProto.INT64)
        ends = graph.node("Add", [lengths, graph.integers(1)], "row_ends")
        column = graph.node("Unsqueeze", [ends, graph.integers(1)], "row_ends_column")
        return graph.node("Add", [column, steps], "positions")

    def _narrowed(self, x: str, label: str) -> str:
        """From [B, S, ·] to the wanted ids, [1, R, ·]; R may be 0."""
        graph = self._graph
        flat = graph.node("Flatten", [x], f"{label}.flat", axis=2)
        rows = graph.node("Gather", [flat, "logit_rows"], f"{label}.rows", axis=0)
        return graph.node("Unsqueeze", [rows, graph.integers(0)], f"{label}.wanted")

    # ---- the head ----

    def _head(self, x: str) -> None:
        """From x [1, R, E] to logits, the likeliest ids and the log-sum-exp of each row."""
        graph, vocabulary, likeliest = self._graph, self._model.vocabulary, top_k(self._model)
        hidden = graph.output("hidden", "float32", ["R", self._model.embedding_length])
        wide = graph.as_float32(x, "hidden_wide")
        graph.nodes("Squeeze", [wide, graph.integers(0)], [hidden])
        product = linear(graph, self._parts.layout, x, "output")
        squeezed = graph.node("Squeeze", [product, graph.integers(0)], "head")
        logits = self._shaped_logits(graph.as_float32(squeezed, "head_wide"))
        graph.nodes("Identity", [logits], [graph.output("logits", "float32", ["R", vocabulary])])
        graph.output("topk_values", "float32", ["R", likeliest])
        graph.output("topk_ids", "int64", ["R", likeliest])
        top = ["topk_values", "topk_ids"]
        graph.nodes("TopK", [logits, graph.integers(likeliest)], top, axis=-1, largest=1, sorted=1)
        self._log_sum_exp(logits, graph.output("lse", "float32", ["R"]))

    def _log_sum_exp(self, logits: str, output: str) -> None:
        """On a GPU in parts: the operator would need cuDNN, and nothing else here does."""
        graph = self._graph
        if graph.item == "float32":
            graph.nodes("ReduceLogSumExp", [logits, graph.integers(1)], [output], keepdims=0)
            return
        bounds = [graph.integers(0), graph.integers(1), graph.integers(1)]
        largest = graph.node("Slice", ["topk_values", *bounds], "largest")
        powers = graph.node("Exp", [graph.node("Sub", [logits, largest], "below")], "powers")
        summed = graph.node("ReduceSum", [powers, graph.integers(1)], "power_sum", keepdims=1)
        wide = graph.node("Add", [largest, graph.node("Log", [summed], "power_log")], "lse_column")
        graph.nodes("Squeeze", [wide, graph.integers(1)], [output])

    def _shaped_logits(self, logits: str) -> str:
        graph, cap = self._graph, self._model.logit_softcap
        if self._model.logit_scale != 1.0:
            factor = graph.number(self._model.logit_scale, "float32")
            logits = graph.node("Mul", [logits, factor], "scaled_logits")
        if cap:
            bound = graph.number(cap, "float32")
            divided = graph.node("Div", [logits, bound], "logits_over_cap")
            bent = graph.node("Tanh", [divided], "bent_logits")
            logits = graph.node("Mul", [bent, bound], "capped_logits")
        return logits
