"""`afmoe` → mlx-lm's `afmoe`: norms around both branches, a gate on attention, windows block by block."""

from __future__ import annotations

import math

from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import (
    ROPE_TABLES,
    Config,
    Family,
    attention_of,
    experts_of,
)
from converters.targets.mlx.models.gpt_oss import layer_types
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.models.routed import SIGMOID_ROUTED, dense_blocks, shared_experts

_SHAPE = frozenset(
    {
        "norms after attention",
        "norms after the feed-forward",
        "norms of q and k",
        "attention gate of its own",
        "sliding window",
        "block without rotation",
        "embedding scale",
        "experts",
    }
)


def _config(model: ModelShape) -> Config:
    attentions = [attention_of(block) for block in model.blocks]
    if any(bool(each.rope) != bool(each.window) for each in attentions):
        raise Unsupported("mlx-lm's afmoe model rotates in all windows and only there")
    if not math.isclose(model.embedding_scale, math.sqrt(model.embedding_length), rel_tol=1e-6):
        raise Unsupported("mlx-lm's afmoe model scales embeddings by √E")
    experts = experts_of(model)
    return layer_types(model) | {
        "num_dense_layers": dense_blocks(model),
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "num_shared_experts": shared_experts(experts),
        "moe_intermediate_size": experts.down.columns,
        "route_norm": experts.is_normalised,
        "route_scale": experts.scale,
        "score_func": experts.gating,
        "n_group": experts.groups,
        "topk_group": experts.groups_used,
        "mup_enabled": True,
    }


FAMILY = Family(
    model_type="afmoe",
    config=_config,
    names=Names(
        router="mlp.router.gate",
        experts="mlp.experts",
        shared="mlp.shared_experts",
        post_attention_norm="post_attention_layernorm",
        feed_forward_norm="pre_mlp_layernorm",
        post_feed_forward_norm="post_mlp_layernorm",
    ),
    selection_bias="mlp.expert_bias",
    carries=ROPE_TABLES | SIGMOID_ROUTED | _SHAPE | {"tied output", "free head size"},
    needs=_SHAPE,
)
