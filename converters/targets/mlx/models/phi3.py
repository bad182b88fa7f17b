"""`phi3` → mlx-lm's `phi3`: fused matrices as they are.

Its module has only a plain rotation and Phi's own longrope, of which it knows the long factors: files
with two sets of factors are refused.
"""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, attention_of

_FUSED = frozenset({"fused q, k and v", "fused gate"})


def _config(model: ModelShape) -> Config:
    rotated, head_size = model.rope["global"].dimensions, attention_of(model.blocks[0]).head_size
    return {"partial_rotary_factor": rotated / head_size}


FAMILY = Family(
    model_type="phi3",
    config=_config,
    carries=_FUSED | {"tied output", "partial rotation"},
    needs=_FUSED,
)
