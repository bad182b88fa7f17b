"""Test architectures without gates, with LayerNorm or with branches side by side: mostly older ones."""

import dataclasses
from collections.abc import Iterator

from tests.models.random_parts import (
    Architecture,
    Shape,
    Value,
    Weight,
    attention,
    bias,
    embedding_and_head,
    fused_attention,
    gated_feed_forward,
    head_norms,
    layer_norm,
    matrix,
    norm,
)


def plain_feed_forward(prefix: str, shape: Shape, *, has_bias: bool = True) -> Iterator[Weight]:
    yield matrix(f"{prefix}ffn_up.weight", shape.feed_forward, shape.embedding)
    yield matrix(f"{prefix}ffn_down.weight", shape.embedding, shape.feed_forward)
    if has_bias:
        yield bias(f"{prefix}ffn_up.bias", shape.feed_forward)
        yield bias(f"{prefix}ffn_down.bias", shape.embedding)


def centered_head(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    yield bias("output_norm.bias", shape.embedding, 0.1)


def starcoder2_weights(shape: Shape) -> Iterator[Weight]:
    yield from centered_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from layer_norm(prefix, "attn_norm", shape.embedding)
        yield from attention(prefix, shape, has_bias=True, has_output_bias=True)
        yield from layer_norm(prefix, "ffn_norm", shape.embedding)
        yield from plain_feed_forward(prefix, shape)


def biased_fused_attention(prefix: str, shape: Shape) -> Iterator[Weight]:
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    yield from fused_attention(prefix, shape)
    yield bias(f"{prefix}attn_qkv.bias", rows)
    yield bias(f"{prefix}attn_output.bias", shape.embedding)


def phi2_weights(shape: Shape, *, is_fused: bool = False) -> Iterator[Weight]:
    yield from centered_head(shape)
    yield bias("output.bias", shape.vocabulary)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from layer_norm(prefix, "attn_norm", shape.embedding)
        if is_fused:
            yield from biased_fused_attention(prefix, shape)
        else:
            yield from attention(prefix, shape, has_bias=True, has_output_bias=True)
        yield from plain_feed_forward(prefix, shape)


def gptneox_weights(shape: Shape) -> Iterator[Weight]:
    yield from centered_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from layer_norm(prefix, "attn_norm", shape.embedding)
        yield from biased_fused_attention(prefix, shape)
        yield from layer_norm(prefix, "ffn_norm", shape.embedding)
        yield from plain_feed_forward(prefix, shape)


def falcon_weights(shape: Shape, *, has_two_norms: bool = False) -> Iterator[Weight]:
    yield from centered_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from layer_norm(prefix, "attn_norm", shape.embedding)
        if has_two_norms:
            yield from layer_norm(prefix, "attn_norm_2", shape.embedding)
        yield from fused_attention(prefix, shape)
        yield from plain_feed_forward(prefix, shape, has_bias=False)


def stablelm_weights(shape: Shape) -> Iterator[Weight]:
    yield from centered_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from layer_norm(prefix, "attn_norm", shape.embedding)
        yield from attention(prefix, shape, has_bias=True)
        yield from layer_norm(prefix, "ffn_norm", shape.embedding)
        yield from gated_feed_forward(prefix, shape)


def nemotron_weights(shape: Shape) -> Iterator[Weight]:
    yield from centered_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from layer_norm(prefix, "attn_norm", shape.embedding)
        yield from attention(prefix, shape)
        yield from layer_norm(prefix, "ffn_norm", shape.embedding)
        yield from plain_feed_forward(prefix, shape, has_bias=False)


def arcee_weights(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        yield from attention(prefix, shape)
        yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        yield from plain_feed_forward(prefix, shape, has_bias=False)


def apertus_weights(shape: Shape) -> Iterator[Weight]:
    yield from arcee_weights(shape)
    for index in range(shape.blocks):
        yield from head_norms(f"blk.{index}.", shape.head_size, shape.head_size)


def centered(shape: Shape) -> dict[str, Value]:
    return {"attention.layer_norm_epsilon": 1e-5}


def partly_rotated(shape: Shape) -> dict[str, Value]:
    """A number of pairs that no power of two divides, as in StableLM 3B."""
    return {**centered(shape), "rope.dimension_count": 20}


def square(shape: Shape) -> Shape:
    """As many heads of keys as of queries, and a network four times as wide as the hidden state."""
    return dataclasses.replace(shape, kv_heads=shape.heads, feed_forward=4 * shape.embedding)


def gptneox_metadata(shape: Shape, *, is_parallel: bool = True) -> dict[str, Value]:
    return {
        **partly_rotated(shape),
        "attention.head_count_kv": shape.heads,
        "feed_forward_length": 4 * shape.embedding,
        "use_parallel_residual": is_parallel,
    }


PLAIN: dict[str, Architecture] = {
    "starcoder2": Architecture("starcoder2", starcoder2_weights, centered),
    "phi2": Architecture("phi2", phi2_weights, partly_rotated),
    "phi2-fused": Architecture(
        "phi2", lambda shape: phi2_weights(shape, is_fused=True), partly_rotated
    ),
    "gptneox": Architecture(
        "gptneox", lambda shape: gptneox_weights(square(shape)), gptneox_metadata
    ),
    "gptneox-serial": Architecture(
        "gptneox",
        lambda shape: gptneox_weights(square(shape)),
        lambda shape: gptneox_metadata(shape, is_parallel=False),
    ),
    "falcon": Architecture("falcon", falcon_weights, centered),
    "falcon-40b": Architecture(
        "falcon", lambda shape: falcon_weights(shape, has_two_norms=True), centered
    ),
    "stablelm": Architecture("stablelm", stablelm_weights, partly_rotated),
    "nemotron": Architecture("nemotron", nemotron_weights, partly_rotated),
    "apertus": Architecture(
        "apertus",
        apertus_weights,
        whole_metadata={
            "xielu.alpha_p": [0.4, 0.9],
            "xielu.alpha_n": [0.7, -0.3],
            "xielu.beta": [0.5, 0.4],
            "xielu.eps": [-1e-6, -1e-6],
        },
    ),
    "arcee": Architecture("arcee", arcee_weights),
}
