"""`smollm3` → mlx-lm's `smollm3`: llama, told block by block which of them rotate."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family, attention_of


def _config(model: ModelShape) -> Config:
    return {"no_rope_layers": [int(bool(attention_of(block).rope)) for block in model.blocks]}


FAMILY = Family(
    model_type="smollm3",
    config=_config,
    carries=ROPE_TABLES | {"tied output", "free head size", "block without rotation"},
)
