"""`nemotron` → mlx-lm's `nemotron`, whose norms add the 1 back."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, attention_of
from converters.targets.mlx.models.llama import biases

_SHAPE = frozenset({"layer norm", "feed-forward without gate", "relu_squared"})


def _config(model: ModelShape) -> Config:
    rotated, head_size = model.rope["global"].dimensions, attention_of(model.blocks[0]).head_size
    return {
        "norm_eps": model.epsilon,
        "hidden_act": "relu2",
        "partial_rotary_factor": rotated / head_size,
        "attention_bias": "query" in biases(model),
        "mlp_bias": "up" in biases(model),
    }


FAMILY = Family(
    model_type="nemotron",
    config=_config,
    norm_shift=-1.0,
    biases=lambda model: biases(model) | {"norm"},
    carries=_SHAPE
    | {
        "tied output",
        "free head size",
        "partial rotation",
        "biases of q, k and v",
        "attention output bias",
        "feed-forward biases",
    },
    needs=_SHAPE,
)
