"""`granitehybrid` → mlx-lm's `granitemoehybrid`: Mamba 2 in most blocks, whose norm knows no groups."""

from __future__ import annotations

from converters.architectures.mixers import Mamba2
from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, first_attention
from converters.targets.mlx.models.granite import SCALES, multipliers
from converters.targets.mlx.models.mamba2 import NO_LIMIT, first_mamba2

_SHAPE = frozenset({"mamba 2"})


def _config(model: ModelShape) -> Config:
    mamba, attention = first_mamba2(model), first_attention(model)
    kinds = {True: "mamba", False: "attention"}
    return multipliers(model, attention) | {
        "layer_types": [kinds[isinstance(block.mixer, Mamba2)] for block in model.blocks],
        "position_embedding_type": "rope" if model.rope else "nope",
        "mamba_n_heads": mamba.heads,
        "mamba_d_head": mamba.size,
        "mamba_proj_bias": False,
        "mamba_d_state": mamba.state,
        "mamba_d_conv": mamba.length,
        "mamba_n_groups": mamba.groups,
        "mamba_conv_bias": True,
        "time_step_limit": [0.0, NO_LIMIT],
    }


FAMILY = Family(
    model_type="granitemoehybrid",
    config=_config,
    carries=SCALES | _SHAPE | {"tied output", "block without rotation"},
    needs=_SHAPE,
)
