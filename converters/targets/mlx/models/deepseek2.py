"""`deepseek2` → mlx-lm's `deepseek_v2`, or `deepseek_v3` where experts are chosen by sigmoid.

The first keeps keys and values of all heads, the second the latent they are made of. Both norm their
latents with an epsilon of 1e-6, whatever the config says, and rotate pairs as the file does.
"""

from __future__ import annotations

import math

from converters.architectures.experts import Experts
from converters.architectures.mixers import LatentAttention
from converters.architectures.model import ModelShape
from converters.architectures.rope import magnitude
from converters.artifact import RopeTable
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family, first_attention
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.models.routed import SIGMOID_ROUTED, routed_experts

LATENT_EPSILON = 1e-6
# What mlx-lm drops when it loads deepseek_v3: the block that predicts ahead, and all 61x.
DROPPED_BLOCK = 61
_COMMON = frozenset({"latent attention", "rope scaling"})
_GREEDY = frozenset(
    {
        "experts",
        "dense blocks among experts",
        "shared expert without gate",
        "scaled experts",
        "unnormalised experts",
    }
)


def _config(model: ModelShape) -> Config:
    attention = first_attention(model)
    assert isinstance(attention, LatentAttention)
    if not math.isclose(model.epsilon, LATENT_EPSILON, rel_tol=1e-3):
        raise Unsupported(
            f"mlx-lm's deepseek models norm by an epsilon of 1e-6, this file by {model.epsilon:g}"
        )
    return {
        "q_lora_rank": attention.query_down.rows if attention.query_down else None,
        "kv_lora_rank": attention.latent,
        "qk_rope_head_dim": attention.rope_size,
        "qk_nope_head_dim": attention.nope_size,
        "v_head_dim": attention.value_size,
        "num_key_value_heads": attention.heads,
        "moe_layer_freq": 1,
    } | routed_experts(model)


def _chosen_by_sigmoid(model: ModelShape) -> Config:
    if len(model.blocks) > DROPPED_BLOCK:
        raise Unsupported(f"mlx-lm's deepseek_v3 model drops block {DROPPED_BLOCK}")
    return _config(model) | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}


def _rope(config: Config, model: ModelShape, tables: dict[str, RopeTable]) -> Config:
    """YaRN with the two multipliers from which the modules compute magnitude and score scale.

    Both are 1 + 0.1 m ln(factor): the scores' is squared, the table's divided by it.
    """
    recipe, attention = model.rope["global"], first_attention(model)
    assert isinstance(attention, LatentAttention)
    whole = attention.scale * math.sqrt(attention.nope_size + attention.rope_size)
    scores, table = math.sqrt(whole), magnitude(recipe)
    logarithm = 0.1 * math.log(recipe.scale) if recipe.scaling == "yarn" else 0.0
    if not logarithm and not math.isclose(scores * table, 1.0, rel_tol=1e-6):
        raise Unsupported("mlx-lm's deepseek models scale their scores only with YaRN")
    return config | {
        "rope_theta": recipe.base,
        "rope_scaling": {
            "type": "yarn",
            "factor": recipe.scale,
            "original_max_position_embeddings": recipe.original_context_length or 4096,
            "beta_fast": recipe.yarn_beta_fast,
            "beta_slow": recipe.yarn_beta_slow,
            "mscale": (scores * table - 1) / logarithm if logarithm else 0.0,
            "mscale_all_dim": (scores - 1) / logarithm if logarithm else 0.0,
        },
    }


GREEDY = Family(
    model_type="deepseek_v2",
    config=_config,
    rope=_rope,
    names=Names(shared="mlp.shared_experts"),
    keeps_pairs=True,
    has_dense_router=True,
    joins_latent=True,
    carries=_COMMON | _GREEDY,
    needs=frozenset({"latent attention"}),
)
BY_SIGMOID = Family(
    model_type="deepseek_v3",
    config=_chosen_by_sigmoid,
    rope=_rope,
    names=Names(shared="mlp.shared_experts"),
    keeps_pairs=True,
    has_dense_router=True,
    selection_bias="mlp.gate.e_score_correction_bias",
    carries=_COMMON | SIGMOID_ROUTED,
    needs=frozenset({"latent attention", "experts by sigmoid"}),
)


def family_of(model: ModelShape) -> Family:
    networks = model.networks()
    by_sigmoid = any(isinstance(each, Experts) and each.gating == "sigmoid" for each in networks)
    return BY_SIGMOID if by_sigmoid else GREEDY
