"""`phi2` → mlx-lm's `phi`: biases everywhere, on the head too; q, k and v apart."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, attention_of
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset(
    {
        "layer norm",
        "parallel branches",
        "feed-forward without gate",
        "gelu_tanh",
        "output bias",
    }
)


def _config(model: ModelShape) -> Config:
    rotated, head_size = model.rope["global"].dimensions, attention_of(model.blocks[0]).head_size
    return {"layer_norm_eps": model.epsilon, "partial_rotary_factor": rotated / head_size}


FAMILY = Family(
    model_type="phi",
    config=_config,
    biases=lambda model: frozenset(
        {"query", "key", "value", "attention_output", "up", "down", "norm"}
    ),
    names=Names(
        output_norm="model.final_layernorm",
        attention_output="self_attn.dense",
        up="mlp.fc1",
        down="mlp.fc2",
    ),
    fused="cut",
    carries=_SHAPE
    | {
        "partial rotation",
        "fused q, k and v",
        "biases of q, k and v",
        "attention output bias",
        "feed-forward biases",
    },
    needs=_SHAPE,
)
