"""`granitehybrid` → mlx-lm's `granitemoehybrid`: Mamba 2 in most blocks, whose norm knows no groups."""

from __future__ import annotations

from converters.architectures.mixers import Mamba2
from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, experts_of, first_attention
from converters.targets.mlx.models.granite import SCALES, multipliers
from converters.targets.mlx.models.mamba2 import NO_LIMIT, first_mamba2
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"mamba 2"})
_CARRIED = SCALES | _SHAPE | {"tied output", "block without rotation"}


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


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return _config(model) | {
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "shared_intermediate_size": experts.shared.down.columns if experts.shared else 0,
    }


FAMILY = Family(
    model_type="granitemoehybrid",
    config=_config,
    carries=_CARRIED,
    needs=_SHAPE,
)
MIXTURE = Family(
    model_type="granitemoehybrid",
    config=_mixture,
    names=Names(
        router="block_sparse_moe.router.layer",
        experts="block_sparse_moe.switch_mlp",
        shared="shared_mlp",
        shared_gate_up="input_linear",
        shared_down="output_linear",
    ),
    carries=_CARRIED | {"experts", "shared expert without gate"},
    needs=_SHAPE | {"experts", "shared expert without gate"},
)
