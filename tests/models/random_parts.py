"""The pieces that test architectures are built from: sizes, weights, and the usual groups of them.

Standard deviations are chosen so that hidden states stay of order one and the logits spread like a
trained model's (standard deviation about 2.5): a matrix of K columns has values of `gain / sqrt(K)`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

LOGIT_SPREAD = 2.5
Value = str | bool | int | float | list[int] | list[float] | list[bool] | list[str]


@dataclass(frozen=True)
class Shape:
    """The sizes of one model; `vocabulary` is known once the tokenizer is built."""

    blocks: int
    embedding: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    vocabulary: int
    head_size: int
    is_tied: bool


@dataclass(frozen=True)
class Weight:
    """One tensor: `shape` slowest dimension first; values are mean + std * normal, or `values`.

    What `is_never_coded` is F16 in a file of coded blocks.
    """

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    is_matrix: bool = True
    values: tuple[float, ...] | None = None
    is_never_coded: bool = False


@dataclass(frozen=True)
class Architecture:
    """What makes one kind of model: GGUF name, tensors, and metadata beyond the common keys.

    Metadata keys are given without the architecture's prefix, those of `whole_metadata` with it.
    """

    name: str
    weights: Callable[[Shape], Iterator[Weight]]
    metadata: Callable[[Shape], dict[str, Value]] = field(default=lambda _shape: {})
    whole_metadata: dict[str, Value] = field(default_factory=dict[str, Value])
    is_tied: bool = False
    head_size: int | None = None  # None: embedding / heads


def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> Weight:
    return Weight(name, (rows, columns), gain / math.sqrt(columns))


def norm(name: str, size: int) -> Weight:
    return Weight(name, (size,), 0.3, 1.0, is_matrix=False)


def bias(name: str, size: int, std: float = 0.3) -> Weight:
    return Weight(name, (size,), std, is_matrix=False)


def embedding_and_head(shape: Shape) -> Iterator[Weight]:
    """`token_embd`, `output_norm`, and `output` unless the head is tied to the embedding.

    A tied head would always prefer the token just read; a final norm centred on zero undoes that.
    """
    spread = LOGIT_SPREAD / math.sqrt(shape.embedding)
    size = (shape.vocabulary, shape.embedding)
    yield Weight("token_embd.weight", size, spread if shape.is_tied else 1.0)
    mean, std = (0.0, 1.0) if shape.is_tied else (1.0, 0.3)
    yield Weight("output_norm.weight", (shape.embedding,), std, mean, is_matrix=False)
    if not shape.is_tied:
        yield Weight("output.weight", size, spread)


def attention(
    prefix: str, shape: Shape, *, has_bias: bool = False, has_output_bias: bool = False
) -> Iterator[Weight]:
    """Separate q, k, v and output projections; q and k a little wide so that attention is peaked."""
    q_rows, kv_rows = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    yield matrix(f"{prefix}attn_q.weight", q_rows, shape.embedding, 1.3)
    yield matrix(f"{prefix}attn_k.weight", kv_rows, shape.embedding, 1.3)
    yield matrix(f"{prefix}attn_v.weight", kv_rows, shape.embedding)
    yield matrix(f"{prefix}attn_output.weight", shape.embedding, q_rows)
    if has_bias:
        yield bias(f"{prefix}attn_q.bias", q_rows)
        yield bias(f"{prefix}attn_k.bias", kv_rows)
        yield bias(f"{prefix}attn_v.bias", kv_rows)
    if has_output_bias:
        yield bias(f"{prefix}attn_output.bias", shape.embedding)


def fused_attention(prefix: str, shape: Shape) -> Iterator[Weight]:
    """One matrix for q, k and v."""
    q_rows = shape.heads * shape.head_size
    rows = q_rows + 2 * shape.kv_heads * shape.head_size
    yield matrix(f"{prefix}attn_qkv.weight", rows, shape.embedding, 1.2)
    yield matrix(f"{prefix}attn_output.weight", shape.embedding, q_rows)


def head_norms(prefix: str, q_size: int, k_size: int) -> Iterator[Weight]:
    yield norm(f"{prefix}attn_q_norm.weight", q_size)
    yield norm(f"{prefix}attn_k_norm.weight", k_size)


def gated_feed_forward(prefix: str, shape: Shape) -> Iterator[Weight]:
    yield matrix(f"{prefix}ffn_gate.weight", shape.feed_forward, shape.embedding)
    yield matrix(f"{prefix}ffn_up.weight", shape.feed_forward, shape.embedding)
    yield matrix(f"{prefix}ffn_down.weight", shape.embedding, shape.feed_forward)


def fused_feed_forward(prefix: str, shape: Shape) -> Iterator[Weight]:
    """`ffn_up` holds gate and up."""
    yield matrix(f"{prefix}ffn_up.weight", 2 * shape.feed_forward, shape.embedding)
    yield matrix(f"{prefix}ffn_down.weight", shape.embedding, shape.feed_forward)


def layer_norm(prefix: str, name: str, size: int, *, has_bias: bool = True) -> Iterator[Weight]:
    yield norm(f"{prefix}{name}.weight", size)
    if has_bias:
        yield bias(f"{prefix}{name}.bias", size, 0.1)


def plain_blocks(shape: Shape, *, has_bias: bool = False) -> Iterator[Weight]:
    """Norm, attention, norm, gated feed-forward: the shape most decoders share."""
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        yield from attention(prefix, shape, has_bias=has_bias)
        yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        yield from gated_feed_forward(prefix, shape)


def common_metadata(shape: Shape) -> dict[str, Value]:
    """The keys every decoder has, without the architecture's prefix."""
    return {
        "context_length": shape.context,
        "embedding_length": shape.embedding,
        "block_count": shape.blocks,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_size,
        "rope.freq_base": 10000.0,
        "vocab_size": shape.vocabulary,
    }
