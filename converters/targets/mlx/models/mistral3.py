"""`mistral3` → mlx-lm's `ministral3`, whose queries sharpen with their position.

Its module reads all about rotations from one key, which `rope.with_rope` completes.
"""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family


def _config(model: ModelShape) -> Config:
    recipe, temperature = model.rope["global"], model.temperature
    length = temperature.length if temperature else model.context_length
    if recipe.scaling == "yarn" and length != recipe.original_context_length:
        raise Unsupported("mlx-lm's ministral3 model has one original context length, not two")
    return {
        "rope_parameters": {
            "llama_4_scaling_beta": temperature.strength if temperature else 0.0,
            "original_max_position_embeddings": length,
        }
    }


FAMILY = Family(
    model_type="ministral3",
    config=_config,
    carries=frozenset({"tied output", "free head size", "query temperature", "rope scaling"}),
)
