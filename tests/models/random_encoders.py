"""Test architectures that give vectors: encoders, and decoders whose files name a pooling."""

from collections.abc import Callable, Iterator

from tests.models.random_decoders import gemma3_weights, interleaved_sections, qwen3_weights
from tests.models.random_mixtures import EXPERTS, USED, router
from tests.models.random_parts import (
    Architecture,
    Shape,
    Value,
    Weight,
    attention,
    bias,
    fused_attention,
    gated_feed_forward,
    layer_norm,
    matrix,
)

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
POSITIONS = 512
Weights = Callable[[Shape], Iterator[Weight]]


def embeddings(shape: Shape, *, has_positions: bool = False) -> Iterator[Weight]:
    width = shape.embedding
    yield Weight("token_embd.weight", (shape.vocabulary, width), 1.0)
    yield Weight("token_types.weight", (2, width), 0.3, is_matrix=False)
    if has_positions:
        yield Weight("position_embd.weight", (POSITIONS, width), 0.5, is_matrix=False)
    yield from layer_norm("", "token_embd_norm", width)


def post_norms(prefix: str, shape: Shape) -> Iterator[Weight]:
    yield from layer_norm(prefix, "attn_output_norm", shape.embedding)
    yield from layer_norm(prefix, "layer_output_norm", shape.embedding)


def bert_weights(shape: Shape) -> Iterator[Weight]:
    yield from embeddings(shape, has_positions=True)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from attention(prefix, shape, has_bias=True, has_output_bias=True)
        yield from post_norms(prefix, shape)
        yield matrix(f"{prefix}ffn_up.weight", shape.feed_forward, shape.embedding)
        yield bias(f"{prefix}ffn_up.bias", shape.feed_forward)
        yield matrix(f"{prefix}ffn_down.weight", shape.embedding, shape.feed_forward)
        yield bias(f"{prefix}ffn_down.bias", shape.embedding)


def bert_rank_weights(shape: Shape) -> Iterator[Weight]:
    yield from bert_weights(shape)
    yield matrix("cls.weight", shape.embedding, shape.embedding)
    yield bias("cls.bias", shape.embedding)
    yield matrix("cls.output.weight", 1, shape.embedding)
    yield bias("cls.output.bias", 1)


def nomic_weights(shape: Shape) -> Iterator[Weight]:
    yield from embeddings(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from fused_attention(prefix, shape)
        yield from post_norms(prefix, shape)
        yield from gated_feed_forward(prefix, shape)


def nomic_moe_weights(shape: Shape) -> Iterator[Weight]:
    """Experts without gates in every second block."""
    yield from embeddings(shape)
    for index in range(shape.blocks):
        prefix, inner, width = f"blk.{index}.", shape.feed_forward, shape.embedding
        yield from fused_attention(prefix, shape)
        yield bias(f"{prefix}attn_qkv.bias", 3 * width)
        yield bias(f"{prefix}attn_output.bias", width)
        yield from post_norms(prefix, shape)
        if index % 2:
            yield router(prefix, shape)
            yield Weight(f"{prefix}ffn_up_exps.weight", (EXPERTS, inner, width), width**-0.5)
            yield Weight(f"{prefix}ffn_down_exps.weight", (EXPERTS, width, inner), inner**-0.5)
            continue
        yield matrix(f"{prefix}ffn_up.weight", inner, width)
        yield bias(f"{prefix}ffn_up.bias", inner)
        yield matrix(f"{prefix}ffn_down.weight", width, inner)
        yield bias(f"{prefix}ffn_down.bias", width)


def jina_weights(shape: Shape) -> Iterator[Weight]:
    """The English models: gate apart, a bias below."""
    yield from embeddings(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from attention(prefix, shape, has_bias=True, has_output_bias=True)
        yield from post_norms(prefix, shape)
        yield from gated_feed_forward(prefix, shape)
        yield bias(f"{prefix}ffn_down.bias", shape.embedding)


def jina_code_weights(shape: Shape) -> Iterator[Weight]:
    """The code models: norms on q and k and once more after attention."""
    yield from jina_weights(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        for name in ("attn_q_norm", "attn_k_norm", "attn_norm_2"):
            yield from layer_norm(prefix, name, shape.embedding)


def qwen3_rank_weights(shape: Shape) -> Iterator[Weight]:
    yield from qwen3_weights(shape)
    yield matrix("cls.output.weight", 2, shape.embedding)


def gemma_embedding_weights(shape: Shape) -> Iterator[Weight]:
    yield from gemma3_weights(shape)
    yield matrix("dense_2.weight", 2 * shape.embedding, shape.embedding)
    yield matrix("dense_3.weight", shape.embedding, 2 * shape.embedding)


def bert_metadata(pooling: int) -> dict[str, Value]:
    return {
        "attention.causal": False,
        "attention.layer_norm_epsilon": 1e-12,
        "pooling_type": pooling,
        "context_length": POSITIONS,
    }


def bert_like(name: str, weights: Weights, pooling: int = MEAN, **more: Value) -> Architecture:
    """Keyword arguments are metadata; of `rope` with `_` for the dot after the first word."""
    keys = {key: key.replace("_", ".", 1) if key.startswith("rope") else key for key in more}
    metadata = bert_metadata(pooling) | {keys[key]: more[key] for key in more}
    types: dict[str, Value] = {"tokenizer.ggml.token_type_count": 2}
    return Architecture(name, weights, lambda _shape: metadata, whole_metadata=types)


ENCODERS: dict[str, Architecture] = {
    "bert": bert_like("bert", bert_weights),
    "bert-cls": bert_like("bert", bert_weights, CLS),
    "bert-rank": bert_like("bert", bert_rank_weights, RANK),
    "nomic-bert": bert_like("nomic-bert", nomic_weights, rope_freq_base=1000.0),
    "nomic-bert-moe": bert_like(
        "nomic-bert-moe",
        nomic_moe_weights,
        moe_every_n_layers=2,
        expert_count=EXPERTS,
        expert_used_count=USED,
    ),
    "jina-bert-v2": bert_like("jina-bert-v2", jina_weights),
    "jina-bert-v2-code": bert_like("jina-bert-v2", jina_code_weights),
    "qwen3-embedding": Architecture(
        "qwen3", qwen3_weights, lambda _shape: {"pooling_type": LAST}, is_tied=True
    ),
    "qwen3-rank": Architecture(
        "qwen3",
        qwen3_rank_weights,
        lambda _shape: {"pooling_type": RANK, "classifier.output_labels": ["yes", "no"]},
        is_tied=True,
    ),
    "qwen3vl-rank": Architecture(
        "qwen3vl",
        qwen3_rank_weights,
        lambda shape: {
            **interleaved_sections(shape),
            "pooling_type": RANK,
            "classifier.output_labels": ["yes", "no"],
        },
        is_tied=True,
    ),
    "gemma-embedding": Architecture(
        "gemma-embedding",
        gemma_embedding_weights,
        lambda shape: {
            "pooling_type": MEAN,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": 2,
            "rope.freq_base": 1000000.0,
            "dense_2_feat_in": shape.embedding,
            "dense_2_feat_out": 2 * shape.embedding,
            "dense_3_feat_in": 2 * shape.embedding,
            "dense_3_feat_out": shape.embedding,
        },
        is_tied=True,
    ),
}
