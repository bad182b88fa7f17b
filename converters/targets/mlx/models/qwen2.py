"""`qwen2`, `qwen2moe` → mlx-lm's `qwen2`, `qwen2_moe`: q, k and v always have a bias there."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family, experts_of

_PROJECTIONS = frozenset({"query", "key", "value"})

FAMILY = Family(
    model_type="qwen2",
    biases=lambda model: _PROJECTIONS,
    carries=ROPE_TABLES | {"tied output", "biases of q, k and v"},
)


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "shared_expert_intermediate_size": experts.shared.down.columns if experts.shared else 0,
    }


MIXTURE = Family(
    model_type="qwen2_moe",
    config=_mixture,
    biases=lambda model: _PROJECTIONS,
    carries=ROPE_TABLES
    | {"tied output", "biases of q, k and v", "experts", "shared expert", "unnormalised experts"},
    needs=frozenset({"shared expert", "unnormalised experts"}),
)
