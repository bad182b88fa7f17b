"""`phi3` → mlx-lm's `phi3`: fused matrices as they are.

Its module has only a plain rotation and Phi's own longrope, of which it reads the long factors: see
`rope.with_longrope`.
"""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family, attention_of
from converters.targets.mlx.rope import with_longrope

_FUSED = frozenset({"fused q, k and v", "fused gate"})


def _config(model: ModelShape) -> Config:
    rotated, head_size = model.rope["global"].dimensions, attention_of(model.blocks[0]).head_size
    return {"partial_rotary_factor": rotated / head_size}


FAMILY = Family(
    model_type="phi3",
    config=_config,
    rope=with_longrope,
    carries=_FUSED | ROPE_TABLES | {"tied output", "partial rotation", "long rope factors"},
    needs=_FUSED,
)
