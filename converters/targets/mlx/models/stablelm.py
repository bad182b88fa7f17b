"""`stablelm` → mlx-lm's `stablelm`: never a tied head."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, attention_of
from converters.targets.mlx.models.glm4 import projection_biases


def _config(model: ModelShape) -> Config:
    rotated, head_size = model.rope["global"].dimensions, attention_of(model.blocks[0]).head_size
    return {
        "layer_norm_eps": model.epsilon,
        "partial_rotary_factor": rotated / head_size,
        "use_qkv_bias": bool(projection_biases(model)),
    }


FAMILY = Family(
    model_type="stablelm",
    config=_config,
    biases=lambda model: projection_biases(model) | {"norm"},
    carries=frozenset({"layer norm", "partial rotation", "biases of q, k and v"}),
    needs=frozenset({"layer norm"}),
)
