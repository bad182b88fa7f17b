"""`glm4moe` → mlx-lm's `glm4_moe`: never a tied head, no scaled rotation."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, attention_of
from converters.targets.mlx.models.glm4 import projection_biases
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.models.routed import SIGMOID_ROUTED, routed_experts


def _config(model: ModelShape) -> Config:
    attention = attention_of(model.blocks[0])
    return routed_experts(model) | {
        "use_qk_norm": attention.query_norm is not None,
        "attention_bias": bool(projection_biases(model)),
        "partial_rotary_factor": model.rope["global"].dimensions / attention.head_size,
        "rope_scaling": None,
    }


FAMILY = Family(
    model_type="glm4_moe",
    config=_config,
    biases=projection_biases,
    names=Names(shared="mlp.shared_experts"),
    has_dense_router=True,
    selection_bias="mlp.gate.e_score_correction_bias",
    carries=SIGMOID_ROUTED
    | {"free head size", "partial rotation", "norms of q and k", "biases of q, k and v"},
    needs=frozenset({"experts by sigmoid"}),
)
