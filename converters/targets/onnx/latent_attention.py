"""Multi-head latent attention as multi-query attention over one cached head of [rope | latent].

The query's nope part is taken through the key's up-projection once, so that the cache holds the
latent itself: q·k = q_rope·k_rope + (q_nope K)·latent. What comes out is latent again and goes
through the value's up-projection head by head. Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1,
in llama.cpp's absorbed form; rotated numbers come first here because the operator rotates the front.
"""

from __future__ import annotations

from converters.architectures.mixers import LatentAttention
from converters.targets.onnx.attention import Context, attend
from converters.targets.onnx.graph import MICROSOFT
from converters.targets.onnx.parts import Parts


def latent_attention(
    parts: Parts, context: Context, x: str, index: int, attention: LatentAttention
) -> str:
    """[B, S, heads · value_size], before the output projection."""
    graph, heads, size = parts.graph, attention.heads, attention.head_size
    query = _query(parts, context, x, attention)
    key = _key(parts, x, attention)
    cached = context.cached(index, attention.kv_heads, size)
    inputs = [query, key, key, cached.past_key, cached.past_value, context.lengths, context.total]
    attended = attend(
        graph,
        [*inputs, *context.ropes[attention.rope]],
        cached,
        num_heads=heads,
        kv_num_heads=1,
        scale=attention.scale,
        do_rotary=1,
        rotary_interleaved=int(attention.interleaved),
    )
    per_head = graph.node("Reshape", [attended, graph.integers(0, 0, heads, size)], "latent_heads")
    bounds = [graph.integers(attention.rope_size), graph.integers(size), graph.integers(3)]
    latent = graph.node("Slice", [per_head, *bounds], "latent")
    value = _by_head(parts, latent, _stack(parts, attention, "value"), is_transposed=True)
    joined = graph.integers(0, 0, heads * attention.value_size)
    return graph.node("Reshape", [value, joined], "attn_values")


def _query(parts: Parts, context: Context, x: str, attention: LatentAttention) -> str:
    """[B, S, heads · (rope + latent)]."""
    graph, heads = parts.graph, attention.heads
    query = _plain_query(parts, x, attention)
    size = attention.nope_size + attention.rope_size
    cut = graph.node("Reshape", [query, graph.integers(0, 0, heads, size)], "q_heads")
    lengths = graph.integers(attention.nope_size, attention.rope_size)
    names = [graph.scoped("q_nope"), graph.scoped("q_rope")]
    nope, rope = graph.nodes("Split", [cut, lengths], names, axis=-1)
    # The separate tensor is stored [latent, nope], the joint one [nope, latent].
    is_transposed = bool(attention.key_up)
    absorbed = _by_head(parts, nope, _stack(parts, attention, "key"), is_transposed=is_transposed)
    both = graph.node("Concat", [rope, absorbed], "q_both", axis=-1)
    whole = graph.node("Reshape", [both, graph.integers(0, 0, heads * attention.head_size)], "q")
    if context.query_factor:
        whole = graph.node("Mul", [whole, context.query_factor], "q_scaled")
    return whole


def _plain_query(parts: Parts, x: str, attention: LatentAttention) -> str:
    if attention.query:
        return parts.linear(x, attention.query)
    assert attention.query_down and attention.query_norm and attention.query_up
    low = parts.norm(parts.linear(x, attention.query_down), attention.query_norm)
    return parts.linear(low, attention.query_up)


def _key(parts: Parts, x: str, attention: LatentAttention) -> str:
    """[B, S, rope + latent], which is the value too."""
    graph = parts.graph
    both = parts.linear(x, attention.key_value_down)
    lengths = graph.integers(attention.latent, attention.rope_size)
    names = [graph.scoped("kv_latent"), graph.scoped("k_rope")]
    latent, rope = graph.nodes("Split", [both, lengths], names, axis=-1)
    normed = parts.norm(latent, attention.key_value_norm)
    return graph.node("Concat", [rope, normed], "k", axis=-1)


def _stack(parts: Parts, attention: LatentAttention, role: str) -> str:
    """The up-projection of keys or values, [heads, ·, ·]; cut out of the joint one if need be."""
    if attention.key_up:
        return parts.vector(attention.key_up if role == "key" else attention.value_up)
    graph, nope = parts.graph, attention.nope_size
    ends = (0, nope) if role == "key" else (nope, nope + attention.value_size)
    bounds = [graph.integers(end) for end in ends]
    whole = parts.vector(attention.key_value_up)
    return graph.node("Slice", [whole, *bounds, graph.integers(1)], f"{role}_up")


def _by_head(parts: Parts, x: str, stack: str, *, is_transposed: bool) -> str:
    """[B, S, heads, a] times each head's matrix → [B, S, heads, b]."""
    graph = parts.graph
    by_head = graph.node("Transpose", [x], f"{stack}.in", perm=[0, 2, 1, 3])
    product = graph.node(
        "FusedMatMul", [by_head, stack], f"{stack}.product", domain=MICROSOFT,
        transB=int(is_transposed),
    )  # fmt: skip
    return graph.node("Transpose", [product], f"{stack}.out", perm=[0, 2, 1, 3])
