"""`lfm2`, `lfm2moe` → mlx-lm's `lfm2`, `lfm2_moe`: attention in some blocks, a short convolution in the others."""

from __future__ import annotations

from msgspec.structs import replace

from converters.architectures.mixers import Attention, ShortConvolution
from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family, experts_of
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.models.routed import dense_blocks

_SHAPE = frozenset({"short convolution", "norms of q and k", "tied output"})
_NAMES = Names(
    output_norm="model.embedding_norm",
    attention_output="self_attn.out_proj",
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
    attention_norm="operator_norm",
    feed_forward_norm="ffn_norm",
)


def _mixers(model: ModelShape) -> Config:
    mixers = [block.mixer for block in model.blocks]
    lengths = {each.length for each in mixers if isinstance(each, ShortConvolution)}
    if len(lengths) > 1:
        raise Unsupported(f"mlx-lm's lfm2 model has one kernel length, not {sorted(lengths)}")
    return {
        "norm_eps": model.epsilon,
        "conv_bias": False,
        "conv_L_cache": max(lengths),
        "full_attn_idxs": [at for at, each in enumerate(mixers) if isinstance(each, Attention)],
    }


def _config(model: ModelShape) -> Config:
    return _mixers(model) | {
        "block_dim": model.embedding_length,
        "block_ff_dim": next(model.networks()).down.columns,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    }


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return _mixers(model) | {
        "num_dense_layers": dense_blocks(model),
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "norm_topk_prob": experts.is_normalised,
        "use_expert_bias": True,
    }


FAMILY = Family(
    model_type="lfm2",
    config=_config,
    names=_NAMES,
    carries=_SHAPE,
    needs=_SHAPE,
)
MIXTURE = Family(
    model_type="lfm2_moe",
    config=_mixture,
    names=replace(
        _NAMES,
        gate="feed_forward.gate_proj",
        up="feed_forward.up_proj",
        down="feed_forward.down_proj",
        router="feed_forward.gate",
        experts="feed_forward.switch_mlp",
    ),
    selection_bias="feed_forward.expert_bias",
    carries=_SHAPE
    | {
        "experts",
        "experts by sigmoid",
        "bias on choosing experts",
        "dense blocks among experts",
    },
    needs=_SHAPE | {"experts by sigmoid"},
)
