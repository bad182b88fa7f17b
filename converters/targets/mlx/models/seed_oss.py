"""`seed_oss` → mlx-lm's `seed_oss`, whose tied head would take no codes."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family
from converters.targets.mlx.models.glm4 import projection_biases


def _config(model: ModelShape) -> Config:
    return {"attention_bias": bool(projection_biases(model))}


FAMILY = Family(
    model_type="seed_oss",
    config=_config,
    biases=projection_biases,
    carries=ROPE_TABLES | {"free head size", "biases of q, k and v"},
)
