"""Several residual streams in a graph; `architectures/altup.py` says what is computed.

All streams are one value [1|B, S, streams, E], so that a block predicts them in one product.
"""

from __future__ import annotations

import numpy as np

from converters.architectures.altup import LEAST_SQUARE, AltUp, BlockAltUp
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape
from converters.architectures.parts import Absent, Linear
from converters.targets.onnx.attention import Context, grouped_attention
from converters.targets.onnx.blocks import Narrow
from converters.targets.onnx.feed_forward import feed_forward
from converters.targets.onnx.graph import MICROSOFT
from converters.targets.onnx.parts import Parts

HALVED = 2.0**-0.5
# Axes of the streams' value; never negative, since reductions then keep them when there are no ids.
STREAM_AXIS, WIDTH_AXIS = 2, 3


class Streams:
    """What goes from block to block, and each block's own input [1|B, S, inputs]."""

    def __init__(self, parts: Parts, altup: AltUp, value: str, inputs: list[str]) -> None:
        self._parts = parts
        self._graph = parts.graph
        self._altup = altup
        self._width = parts.model.embedding_length
        self._value = value
        self._inputs = inputs

    def pass_block(
        self, context: Context, index: int, block: BlockShape, narrowed: Narrow | None
    ) -> None:
        """Through one block; with `narrowed` only the wanted ids come out."""
        altup, mixer = block.altup, block.mixer
        assert altup is not None and isinstance(mixer, Attention)
        assert block.attention_norm and block.post_attention_norm
        parts, graph = self._parts, self._graph
        predicted = self._predicted(altup)
        x = parts.norm(self._first(predicted, "predicted_first"), block.attention_norm)
        attended = grouped_attention(parts, context, x, index, mixer)
        own = self._inputs[index]
        if narrowed:
            predicted = self._narrowed(predicted, narrowed)
            x, attended = narrowed(x, "normed"), narrowed(attended, "attended")
            own = narrowed(own, "own")
        branch = parts.norm(parts.linear(attended, mixer.output), block.post_attention_norm)
        before = self._first(predicted, "expected")
        gated = graph.node("Add", [before, branch], "attn_added")
        joined = graph.node("Add", [gated, self._low_rank(altup, x)], "low_rank_added")
        halved = graph.node("Mul", [joined, graph.number(HALVED)], "attn_joined")
        result = self._fed(block, index, halved)
        corrected = self._corrected(altup, predicted, before, result)
        self._value = self._with_own(altup, corrected, own)

    def _fed(self, block: BlockShape, index: int, x: str) -> str:
        assert not isinstance(block.feed_forward, Absent)
        assert block.feed_forward_norm and block.post_feed_forward_norm
        normed = self._parts.norm(x, block.feed_forward_norm)
        branch = feed_forward(self._parts, normed, index, block.feed_forward)
        branch = self._parts.norm(branch, block.post_feed_forward_norm)
        return self._graph.node("Add", [x, branch], "ffn_added")

    def _low_rank(self, altup: BlockAltUp, x: str) -> str:
        low = self._parts.linear(self._parts.linear(x, altup.left), altup.right)
        normed = self._parts.norm(low, altup.low_rank_norm)
        return self._graph.node("Add", [x, normed], "low_rank")

    def _predicted(self, altup: BlockAltUp) -> str:
        graph, streams = self._graph, self._altup.streams
        found = self._routed(altup, self._first(self._value, "stream_first"), "predict")
        flat = self._small_product(found, altup.predict, "predict_flat")
        square = graph.integers(0, 0, streams, streams)
        coefficients = graph.node("Reshape", [flat, square], "predict_coefficients")
        change = graph.node("MatMul", [coefficients, self._value], "predicted_change")
        return graph.node("Add", [self._value, change], "predicted")

    def _corrected(self, altup: BlockAltUp, predicted: str, before: str, result: str) -> str:
        graph = self._graph
        found = self._routed(altup, result, "correct")
        flat = self._small_product(found, altup.correct, "correct_flat")
        grown = graph.node("Add", [flat, graph.number(1.0)], "correct_grown")
        column = graph.node("Unsqueeze", [grown, graph.integers(WIDTH_AXIS)], "correct_column")
        news = graph.node("Sub", [result, before], "news")
        line = graph.node("Unsqueeze", [news, graph.integers(STREAM_AXIS)], "news_line")
        change = graph.node("Mul", [line, column], "corrected_change")
        return graph.node("Add", [predicted, change], "corrected")

    def _routed(self, altup: BlockAltUp, x: str, label: str) -> str:
        """[.., streams]. A block routes twice, so the scope tells its norms apart."""
        graph, outer = self._graph, self._graph.scope
        graph.scope = f"{outer}.{label}"
        product = self._small_product(
            self._parts.norm(x, altup.router_norm), altup.router, "routed"
        )
        scaled = graph.node("Mul", [product, graph.number(1.0 / self._width)], "routed_scaled")
        routed = graph.node("Tanh", [scaled], "modalities")
        graph.scope = outer
        return routed

    def _small_product(self, x: str, matrix: Linear, label: str) -> str:
        """With a matrix of a few rows, which lies as plain numbers."""
        return _turned_product(self._parts, x, matrix.weight, label)

    def _with_own(self, altup: BlockAltUp, corrected: str, own: str) -> str:
        """The block's own input, added to all streams but the first."""
        parts, graph = self._parts, self._graph
        first = self._first(corrected, "corrected_first")
        scaled = graph.node("Mul", [first, parts.vector(altup.scale)], "own_scaled")
        gate = parts.linear(scaled, altup.own_gate)
        opened = graph.node("Gelu", [gate], "own_gelu", approximate="tanh")
        inner = graph.node("Mul", [opened, own], "own_inner")
        added = parts.norm(parts.linear(inner, altup.own_output), altup.own_norm)
        line = graph.node("Unsqueeze", [added, graph.integers(STREAM_AXIS)], "own_line")
        mask = np.ones((self._altup.streams, 1), graph.item)
        mask[0] = 0
        kept = graph.constant("streams_but_first", mask)
        return graph.node(
            "Add", [corrected, graph.node("Mul", [line, kept], "own_change")], "streams"
        )

    def _first(self, streams: str, label: str) -> str:
        return self._graph.node("Gather", [streams, self._graph.scalar(0)], label, axis=STREAM_AXIS)

    def _narrowed(self, streams: str, narrowed: Narrow) -> str:
        flat = narrowed(streams, "predicted")
        shape = self._graph.integers(0, 0, self._altup.streams, self._width)
        return self._graph.node("Reshape", [flat, shape], "predicted.wanted_streams")

    def merged(self) -> str:
        """[1, R, E], once no blocks follow."""
        graph, altup = self._graph, self._altup
        parts = [graph.scoped("stream_kept"), graph.scoped("streams_gathered")]
        lengths = graph.integers(1, altup.streams - 1)
        kept, others = graph.nodes("Split", [self._value, lengths], parts, axis=STREAM_AXIS)
        turned = graph.node("Transpose", [others], "others_turned", perm=[0, 2, 1, 3])
        product = _turned_product(self._parts, turned, altup.gather, "others_product")
        back = graph.node("Transpose", [product], "others_back", perm=[0, 2, 1, 3])
        whole = graph.node(
            "Concat",
            [kept, as_long(self._parts, back, kept, "gathered")],
            "streams_together",
            axis=STREAM_AXIS,
        )
        return graph.node("ReduceMean", [whole, graph.integers(STREAM_AXIS)], "merged", keepdims=0)


def open_streams(parts: Parts, altup: AltUp, joint: str) -> Streams:
    """From what ids are looked up as [B, S, E + blocks · inputs], in this order."""
    graph, model = parts.graph, parts.model
    total = len(model.blocks) * altup.inputs
    lengths = graph.integers(model.embedding_length, total)
    x, rows = graph.nodes("Split", [joint, lengths], ["embeds_first", "embeds_own"], axis=2)
    first = graph.node("Unsqueeze", [x, graph.integers(STREAM_AXIS)], "stream_first")
    shape = graph.integers(0, 0, altup.streams - 1, model.embedding_length)
    others = graph.node("Reshape", [parts.linear(x, altup.spread), shape], "streams_spread")
    long = as_long(parts, others, first, "spread")
    value = graph.node("Concat", [first, long], "streams_opened", axis=STREAM_AXIS)
    return Streams(parts, altup, value, _own_inputs(parts, altup, x, rows))


def as_long(parts: Parts, x: str, like: str, label: str) -> str:
    """X as long as `like`, along the last of four axes."""
    graph = parts.graph
    wanted = graph.node("Sqrt", [_mean_square(parts, like, f"{label}_wanted")], f"{label}_length")
    found = _mean_square(parts, x, f"{label}_found")
    bounded = graph.node("Max", [found, graph.number(LEAST_SQUARE)], f"{label}_bounded")
    root = graph.node("Sqrt", [bounded], f"{label}_root")
    factor = graph.node("Div", [wanted, root], f"{label}_factor")
    return graph.node("Mul", [x, factor], f"{label}_long")


def _turned_product(parts: Parts, x: str, weight: str, label: str) -> str:
    """The product with Wᵀ, an array of plain numbers."""
    inputs = [x, parts.vector(weight)]
    return parts.graph.node("FusedMatMul", inputs, label, domain=MICROSOFT, transB=1)


def _mean_square(parts: Parts, x: str, label: str) -> str:
    square = parts.graph.node("Mul", [x, x], f"{label}_square")
    axis = parts.graph.integers(WIDTH_AXIS)
    return parts.graph.node("ReduceMean", [square, axis], label, keepdims=1)


def _own_inputs(parts: Parts, altup: AltUp, x: str, rows: str) -> list[str]:
    """[B, S, inputs] for each block."""
    graph, blocks = parts.graph, len(parts.model.blocks)
    scale = graph.number(parts.model.embedding_length**-0.5)
    projected = graph.node("Mul", [parts.linear(x, altup.projection), scale], "own_projected")
    cut = graph.node("Reshape", [projected, graph.integers(0, 0, blocks, altup.inputs)], "own_cut")
    normed = parts.norm(cut, altup.input_norm)
    flat = graph.node("Reshape", [normed, graph.integers(0, 0, blocks * altup.inputs)], "own_flat")
    both = graph.node("Add", [flat, rows], "own_both")
    halved = graph.node("Mul", [both, graph.number(HALVED)], "own_inputs")
    names = [f"blk.{index}.own" for index in range(blocks)]
    return graph.nodes("Split", [halved], names, axis=2, num_outputs=blocks)
