"""`granite`, `granitemoe`, `minicpm` → mlx-lm's `granite`, `granitemoe`: four multipliers, the last one divides."""

from __future__ import annotations

from converters.architectures.mixers import Attention, LatentAttention
from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import (
    ROPE_TABLES,
    Config,
    Family,
    attention_of,
    experts_of,
)
from converters.targets.mlx.models.names import Names

SCALES = frozenset({"embedding scale", "logit scale", "residual scale", "attention scale"})


def multipliers(model: ModelShape, attention: Attention | LatentAttention) -> Config:
    return {
        "attention_multiplier": attention.scale,
        "embedding_multiplier": model.embedding_scale,
        "residual_multiplier": model.blocks[0].residual_scale,
        "logits_scaling": 1 / model.logit_scale,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _config(model: ModelShape) -> Config:
    return multipliers(model, attention_of(model.blocks[0]))


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return _config(model) | {
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.used,
    }


FAMILY = Family(
    model_type="granite", config=_config, carries=ROPE_TABLES | SCALES | {"tied output"}
)
MIXTURE = Family(
    model_type="granitemoe",
    config=_mixture,
    names=Names(router="block_sparse_moe.router.layer", experts="block_sparse_moe.switch_mlp"),
    carries=ROPE_TABLES | SCALES | {"tied output", "experts"},
)
