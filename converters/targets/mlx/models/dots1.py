"""`dots1` → mlx-lm's `dots1`; `bailingmoe2` → its `bailing_moe`, with q, k and v in one matrix."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import (
    ROPE_TABLES,
    Config,
    Family,
    attention_of,
    experts_of,
)
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.models.routed import SIGMOID_ROUTED, dense_blocks, routed_experts

_NORMED = frozenset({"norms of q and k"})

DOTS1 = Family(
    model_type="dots1",
    config=routed_experts,
    names=Names(experts="mlp.experts", shared="mlp.shared_experts"),
    has_dense_router=True,
    selection_bias="mlp.gate.e_score_correction_bias",
    carries=ROPE_TABLES | SIGMOID_ROUTED | _NORMED | {"tied output", "free head size"},
    needs=_NORMED | {"experts by sigmoid", "shared expert without gate"},
)


def _bailing(model: ModelShape) -> Config:
    experts, attention = experts_of(model), attention_of(model.blocks[0])
    return {
        "first_k_dense_replace": dense_blocks(model),
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "num_shared_experts": int(experts.shared is not None),
        "moe_shared_expert_intermediate_size": experts.shared.down.columns
        if experts.shared
        else None,
        "moe_router_enable_expert_bias": True,
        "norm_topk_prob": experts.is_normalised,
        "routed_scaling_factor": experts.scale,
        "score_function": experts.gating,
        "n_group": experts.groups,
        "topk_group": experts.groups_used,
        "use_qk_norm": True,
        "partial_rotary_factor": model.rope["global"].dimensions / attention.head_size,
    }


BAILING = Family(
    model_type="bailing_moe",
    config=_bailing,
    names=Names(
        embedding="model.word_embeddings",
        fused="attention.query_key_value",
        attention_output="attention.dense",
        query_norm="attention.query_layernorm",
        key_norm="attention.key_layernorm",
        router="mlp.gate.gate_proj",
        shared="mlp.shared_experts",
    ),
    selection_bias="mlp.gate.expert_bias",
    carries=ROPE_TABLES
    | SIGMOID_ROUTED
    | _NORMED
    | {"tied output", "partial rotation", "fused q, k and v"},
    needs=_NORMED | {"fused q, k and v", "experts"},
)
