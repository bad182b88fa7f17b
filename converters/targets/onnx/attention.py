"""Grouped-query attention in a graph, over a KV cache or over a whole padded batch.

GroupQueryAttention rotates, masks and caches. Where it cannot rotate, on CPU or CUDA, another operator
does it before: heads or parts of heads that 16 does not divide, or norms that come after. What differs between decoders and encoders is said by
a `Context`: the inputs that give lengths, and the options of the operator.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from converters.architectures.mixers import Attention, Reading
from converters.architectures.model import ModelShape
from converters.architectures.parts import Norm
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.linear import linear
from converters.targets.onnx.parts import Parts, label_of

ROTATED_STEP = 16
RopeInputs = dict[str, list[str]]


class Cached(msgspec.Struct, frozen=True, kw_only=True):
    """Names of one block's cache values; all "" without a cache."""

    past_key: str = ""
    past_value: str = ""
    present_key: str = ""
    present_value: str = ""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Values of the graph that attention reads: `lengths` i32 [B] (ids minus 1) and `total` i32.

    `positions` i64 [B, S], or [1] for where all rows begin; "" where no rotation comes before.
    `cached` makes inputs and outputs for a block's cache of so many heads of a size. `query_factor`
    [B, S, 1] multiplies queries, "" for none. `bias` gives what is added to the scores. `written` are
    the caches of the blocks that came already, for others to read.
    """

    lengths: str
    total: str
    ropes: RopeInputs
    cached: Callable[[int, int, int], Cached]
    bias: Callable[[Attention], str]
    positions: str = ""
    query_factor: str = ""
    is_causal: bool = True
    written: dict[int, Cached] = {}


def rotates_apart(model: ModelShape, attention: Attention) -> bool:
    """Whether the attention operator cannot rotate for this one."""
    if not attention.rope:
        return False
    sizes = (attention.head_size, model.rope[attention.rope].dimensions)
    is_odd = any(size % ROTATED_STEP for size in sizes)
    return is_odd or (attention.is_normed_after and attention.query_norm is not None)


def any_rotates_apart(model: ModelShape) -> bool:
    mixers = (block.mixer for block in model.blocks)
    return any(rotates_apart(model, each) for each in mixers if isinstance(each, Attention))


def rope_inputs(parts: Parts) -> RopeInputs:
    """Table name → [cos, sin]; "" → none."""
    ropes: RopeInputs = {"": ["", ""]}
    for name, recipe in parts.model.rope.items():
        suffix = "" if name == "global" else f"_{name}"
        shape: list[str | int] = ["P", recipe.dimensions // 2]
        ropes[name] = [
            parts.graph.input(f"{part}{suffix}", parts.graph.item, shape) for part in ("cos", "sin")
        ]
    return ropes


def grouped_attention(
    parts: Parts, context: Context, x: str, index: int, attention: Attention
) -> str:
    """[B, S, heads · head_size], before the output projection."""
    if attention.reading:
        return _reading_attention(parts, context, x, attention, attention.reading)
    projected = _projections(parts, context, x, index, attention)
    gate = projected.pop() if attention.has_output_gate else ""
    gate = parts.linear(x, attention.gate) if attention.gate else gate
    cached = context.cached(index, attention.kv_heads, attention.head_size)
    context.written[index] = cached
    inputs = [*projected, cached.past_key, cached.past_value, context.lengths, context.total]
    is_apart = rotates_apart(parts.model, attention)
    inputs += [*context.ropes["" if is_apart else attention.rope], "", context.bias(attention)]
    attended = attend(
        parts.graph,
        [*inputs, parts.vector(attention.sinks)],
        cached,
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        scale=attention.scale,
        **_options(attention, is_apart=is_apart, is_causal=context.is_causal),
    )
    if not gate:
        return attended
    opened = parts.graph.node("Sigmoid", [gate], "attn_gate_open")
    return parts.graph.node("Mul", [attended, opened], "attn_gated")


def _reading_attention(
    parts: Parts, context: Context, x: str, attention: Attention, reading: Reading
) -> str:
    """Adds no keys and values of its own to those that the other block has cached in this run."""
    graph, cached, query = parts.graph, context.written[reading.block], attention.query
    assert query is not None
    shaped = _shaped(
        parts,
        context,
        parts.linear(x, query),
        attention.query_norm,
        attention.heads,
        attention,
        "q",
    )
    width = reading.kv_heads * attention.head_size
    bounds = [graph.integers(0, 0), graph.integers(0, width), graph.integers(1, 2)]
    none = graph.node("Slice", [shaped, *bounds], "no_keys")
    is_apart = rotates_apart(parts.model, attention)
    tables = context.ropes["" if is_apart else attention.rope]
    past = [cached.present_key, cached.present_value, context.lengths, context.total]
    return attend(
        graph,
        [shaped, none, none, *past, *tables, "", context.bias(attention)],
        Cached(),
        num_heads=attention.heads,
        kv_num_heads=reading.kv_heads,
        scale=attention.scale,
        **_options(attention, is_apart=is_apart, is_causal=context.is_causal),
    )


def attend(graph: GraphBuilder, inputs: list[str], cached: Cached, **options: float) -> str:
    outputs = [graph.scoped("attn")]
    if cached.present_key:
        outputs += [cached.present_key, cached.present_value]
    elif graph.item == "float16":  # CUDA's kernel wants them, read or not
        outputs += [graph.scoped("attn_key"), graph.scoped("attn_value")]
    return graph.nodes("GroupQueryAttention", inputs, outputs, domain=MICROSOFT, **options)[0]


def _options(attention: Attention, *, is_apart: bool, is_causal: bool) -> dict[str, int | float]:
    options: dict[str, int | float] = {}
    if attention.rope and not is_apart:
        options |= {"do_rotary": 1, "rotary_interleaved": int(attention.interleaved)}
    if attention.window and is_causal:
        options["local_window_size"] = attention.window
    if attention.softcap:
        options["softcap"] = attention.softcap
    if not is_causal:
        options["causal"] = 0
    return options


def _projections(
    parts: Parts, context: Context, x: str, index: int, attention: Attention
) -> list[str]:
    """[query, key, value], or [all three packed, "", ""] where nothing stands between.

    With an output gate its numbers come fourth.
    """
    packed_name = f"blk.{index}.attn_qkv"
    if attention.fused or packed_name in parts.layout.matrices:
        packed = _packed(parts, x, packed_name, attention)
        is_apart = rotates_apart(parts.model, attention)
        is_normed = attention.query_norm is not None or attention.has_value_norm
        if not (is_normed or context.query_factor or is_apart):
            return [packed, "", ""]
        query, key, value = _cut_projections(parts.graph, packed, attention)
    else:
        linears = (attention.query, attention.key, attention.value)
        query, key, value = (parts.linear(x, linear) for linear in linears if linear)
    gates: list[str] = []
    if attention.has_output_gate:
        query, gate = _cut_gate(parts.graph, query, attention)
        gates = [gate]
    query, key = _shaped_heads(parts, context, query, key, attention)
    if attention.has_value_norm:
        value = _bare_norm(parts, value, attention)
    if context.query_factor:
        query = parts.graph.node("Mul", [query, context.query_factor], "q_scaled")
    return [query, key, value, *gates]


def _shaped_heads(
    parts: Parts, context: Context, query: str, key: str, attention: Attention
) -> list[str]:
    """[query, key] with their norms and, where the operator does not do it, rotated."""
    return [
        _shaped(parts, context, x, norm, heads, attention, label)
        for x, norm, heads, label in (
            (query, attention.query_norm, attention.heads, "q"),
            (key, attention.key_norm, attention.kv_heads, "k"),
        )
    ]


def _shaped(
    parts: Parts,
    context: Context,
    x: str,
    norm: Norm | None,
    heads: int,
    attention: Attention,
    label: str,
) -> str:
    is_apart = rotates_apart(parts.model, attention)
    if is_apart and attention.is_normed_after:
        x = _rotated(parts, context, x, heads, attention, label)
    x = _head_norm(parts, x, norm, heads, attention)
    if is_apart and not attention.is_normed_after:
        x = _rotated(parts, context, x, heads, attention, label)
    return x


def _rotated(
    parts: Parts, context: Context, x: str, heads: int, attention: Attention, label: str
) -> str:
    dimensions = parts.model.rope[attention.rope].dimensions
    return parts.graph.node(
        "RotaryEmbedding",
        [x, context.positions, *context.ropes[attention.rope]],
        f"{label}_rotated",
        domain=MICROSOFT,
        interleaved=int(attention.interleaved),
        num_heads=heads,
        rotary_embedding_dim=dimensions if dimensions < attention.head_size else 0,
    )


def _cut_gate(graph: GraphBuilder, query: str, attention: Attention) -> list[str]:
    """[query, gate] out of heads whose rows are [q; gate]."""
    heads, size = attention.heads, attention.head_size
    cut = graph.node("Reshape", [query, graph.integers(0, 0, heads, 2 * size)], "q_and_gate")
    names = [graph.scoped("q_heads"), graph.scoped("gate_heads")]
    parts = graph.nodes("Split", [cut], names, axis=-1, num_outputs=2)
    joined = graph.integers(0, 0, heads * size)
    return [
        graph.node("Reshape", [part, joined], f"{part.rpartition('.')[2]}.all") for part in parts
    ]


def _packed(parts: Parts, x: str, name: str, attention: Attention) -> str:
    if attention.fused:
        return parts.linear(x, attention.fused)
    return linear(parts.graph, parts.layout, x, name)


def _cut_projections(graph: GraphBuilder, packed: str, attention: Attention) -> list[str]:
    widths = [attention.heads, attention.kv_heads, attention.kv_heads]
    lengths = graph.integers(*(width * attention.head_size for width in widths))
    names = [graph.scoped(part) for part in "qkv"]
    return graph.nodes("Split", [packed, lengths], names, axis=-1)


def _bare_norm(parts: Parts, x: str, attention: Attention) -> str:
    """Each head of the values by its own length, without a weight."""
    graph, heads, size = parts.graph, attention.kv_heads, attention.head_size
    cut = graph.node("Reshape", [x, graph.integers(0, 0, heads, size)], "v_heads")
    ones = graph.constant(f"ones.{graph.item}.{size}", np.ones(size, graph.item))
    normed = graph.node(
        "RMSNormalization", [cut, ones], "v_normed", axis=-1, epsilon=parts.model.epsilon
    )
    return graph.node("Reshape", [normed, graph.integers(0, 0, heads * size)], "v_normed.all")


def _head_norm(parts: Parts, x: str, norm: Norm | None, heads: int, attention: Attention) -> str:
    """Per head, or over all heads where the norm is as wide as they are together."""
    if norm is None:
        return x
    width = parts.layout.vectors[norm.weight].piece.shape[0]
    if width == heads * attention.head_size and heads > 1:
        return parts.norm(x, norm)
    graph, label = parts.graph, label_of(norm)
    per_head = graph.integers(0, 0, heads, attention.head_size)
    cut = graph.node("Reshape", [x, per_head], f"{label}.heads")
    joined = graph.integers(0, 0, heads * attention.head_size)
    return graph.node("Reshape", [parts.norm(cut, norm, of_head=True), joined], f"{label}.all")
