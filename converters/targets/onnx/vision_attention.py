"""Attention of a vision tower: every patch of a tile sees every other, or those of its window.

Without a mask the runtime's kernel goes over the keys in pieces, so that no square of scores exists.
"""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures.parts import Linear, Norm
from converters.projectors.tower import VisionAttention, VisionShape
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.vision_windows import Windows

Apply = Callable[[str, Linear], str]
ApplyNorm = Callable[[str, Norm], str]


class Sight:
    """What all blocks share: the rotation's inputs, and the windows, made once."""

    def __init__(self, graph: GraphBuilder, tower: VisionShape, patches: str | int) -> None:
        self.graph = graph
        self.rotation = tower.rotation
        self.tables = self._tables(tower, patches) if tower.rotation else []
        has_windows = any(block.attention.is_windowed for block in tower.blocks)
        width = tower.embedding_length
        self.windows = Windows(graph, width, patches) if has_windows else None

    def _tables(self, tower: VisionShape, patches: str | int) -> list[str]:
        """`cos` and `sin` as [1, P, half]."""
        half, graph = tower.form.head_size // 2, self.graph
        tables: list[str] = []
        for name in ("cos", "sin"):
            graph.input(name, "float32", [patches, half])
            narrow = graph.as_activations(name, f"{name}_narrow")
            tables.append(graph.node("Unsqueeze", [narrow, graph.integers(0)], f"{name}_tile"))
        return tables


def attend(apply: Apply, norm: ApplyNorm, sight: Sight, x: str, attention: VisionAttention) -> str:
    """From the normed [N, P, E] to the branch [N, P, E]."""
    graph = sight.graph
    query, key, value = _projected(apply, graph, x, attention)
    query = _prepared(norm, sight, query, attention.query_norm, attention, "query")
    key = _prepared(norm, sight, key, attention.key_norm, attention, "key")
    if attention.is_windowed:
        found = _within_windows(sight, [query, key, value], attention)
    else:
        found = _attention(graph, [query, key, value], attention)
    return apply(found, attention.output)


def _within_windows(sight: Sight, given: list[str], attention: VisionAttention) -> str:
    windows = sight.windows
    assert windows is not None
    names = ("query", "key", "value")
    packed = [windows.packed(x, name) for x, name in zip(given, names, strict=True)]
    found = _attention(sight.graph, [*packed, "", "", windows.bias], attention)
    return windows.unpacked(found, "attention")


def _attention(graph: GraphBuilder, inputs: list[str], attention: VisionAttention) -> str:
    heads = attention.heads
    return graph.node("MultiHeadAttention", inputs, "attention", domain=MICROSOFT, num_heads=heads)


def _projected(apply: Apply, graph: GraphBuilder, x: str, attention: VisionAttention) -> list[str]:
    """[query, key, value], each [N, P, E]."""
    if attention.packed:
        joint = apply(x, attention.packed)
        names = [graph.scoped(name) for name in ("query", "key", "value")]
        return graph.nodes("Split", [joint], names, axis=-1, num_outputs=3)
    assert attention.query and attention.key and attention.value
    return [apply(x, each) for each in (attention.query, attention.key, attention.value)]


def _prepared(
    norm: ApplyNorm,
    sight: Sight,
    x: str,
    head_norm: Norm | None,
    attention: VisionAttention,
    label: str,
) -> str:
    """Queries or keys, normed and rotated where they are."""
    graph = sight.graph
    if head_norm and attention.has_norm_per_head:
        heads = graph.integers(0, 0, attention.heads, attention.head_size)
        normed = norm(graph.node("Reshape", [x, heads], f"{label}_heads"), head_norm)
        x = graph.node("Reshape", [normed, graph.integers(0, 0, -1)], f"{label}_normed")
    elif head_norm:
        x = norm(x, head_norm)
    if not sight.rotation:
        return x
    return graph.node(
        "RotaryEmbedding",
        [x, *sight.tables],
        f"{label}_rotated",
        interleaved=int(sight.rotation == "neighbours"),
        num_heads=attention.heads,
    )
