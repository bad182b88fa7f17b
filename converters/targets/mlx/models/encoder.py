"""Models that give vectors → a module of our own, `backends.mlx.encoders`: mlx-lm has none.

Its config says block by block what the file means; rope tables are in the artifact. Where a norm or a
bias has no array, the module has none.
"""

from __future__ import annotations

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, Encoder, ModelShape
from converters.architectures.parts import Absent, FeedForward
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Family, attention_of
from converters.targets.mlx.models.features import features_of
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.rope import Config

MODEL_TYPE = "hearth_encoder"
_NAMES = Names(
    embedding="embedding",
    output_norm="output_norm",
    block="blocks.{}",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    fused="attention.fused",
    attention_output="attention.output",
    query_norm="attention.query_norm",
    key_norm="attention.key_norm",
    gate="feed_forward.gate",
    up="feed_forward.up",
    fused_up="feed_forward.up",
    down="feed_forward.down",
    router="feed_forward.router",
    experts="feed_forward",
    attention_norm="attention_norm",
    post_attention_norm="post_attention_norm",
    feed_forward_norm="feed_forward_norm",
    post_feed_forward_norm="post_feed_forward_norm",
    after_attention_norm="after_attention_norm",
    second_after_norm="second_after_norm",
    after_feed_forward_norm="after_feed_forward_norm",
)
# Those whose hidden states do not fit into fp16.
_WIDE = frozenset({"gemma-embedding", "gemma3"})


def _config(model: ModelShape) -> Config:
    encoder = model.encoder
    assert encoder is not None
    norms = [norm for block in model.blocks for norm in block.norms()]
    return {
        "embedding_scale": model.embedding_scale,
        "is_causal": encoder.is_causal,
        "pooling": encoder.pooling,
        "is_centered": any(norm.is_centered for norm in norms),
        "projections": len(encoder.projections),
        "has_tanh": encoder.has_tanh,
        "ends_in_tanh": _ends_in_tanh(encoder),
        "has_softmax": encoder.has_softmax,
        "blocks": [_block(model, block) for block in model.blocks],
    }


def _ends_in_tanh(encoder: Encoder) -> bool:
    """A lone `cls` is bent, a lone or last `cls.output` is not."""
    stems = [projection.stem for projection in encoder.projections]
    return encoder.pooling == "rank" and encoder.has_tanh and stems == ["cls"]


def _block(model: ModelShape, block: BlockShape) -> Config:
    attention, network = attention_of(block), block.feed_forward
    assert not isinstance(network, Absent)
    _refuse(model, attention)
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_size": attention.head_size,
        "scale": attention.scale,
        "rope": attention.rope,
        "interleaved": attention.interleaved,
        "window": attention.window,
        "alibi_bias": attention.alibi_bias,
        "residual_scale": block.residual_scale,
    } | (_experts(model, network) if isinstance(network, Experts) else _dense(network))


def _dense(network: FeedForward) -> Config:
    return {"activation": network.activation, "is_up_fused": network.is_up_fused}


def _experts(model: ModelShape, experts: Experts) -> Config:
    """Only those without gates: no file with others gives vectors."""
    if experts.activation != "gelu":
        raise Unsupported(f"vectors from {model.architecture} with experts, on MLX")
    return {"activation": "gelu", "is_up_fused": False, "experts_used": experts.used}


def _refuse(model: ModelShape, attention: Attention) -> None:
    missing = {
        "attention sinks": attention.sinks,
        "attention soft caps": attention.softcap,
        "gated attention": attention.has_output_gate or attention.gate,
        "norms after rotation": attention.is_normed_after,
        "query temperature": model.temperature,
        "two sets of rope factors": any(each.long_factors for each in model.rope.values()),
    }
    if found := [name for name, is_there in missing.items() if is_there]:
        raise Unsupported(
            f"vectors from models with {' and '.join(found)} are not supported on MLX"
        )


def family_of(model: ModelShape) -> Family:
    """Carries all features; `_config` refuses what the module has not."""
    return Family(
        model_type=MODEL_TYPE,
        config=_config,
        rope=lambda config, model, tables: config,
        names=_NAMES,
        number="BF16" if model.architecture in _WIDE else "F16",
        keeps_pairs=True,
        carries=frozenset(features_of(model)),
    )
