"""`gpt-oss` → mlx-lm's `gpt_oss`: sinks, clipped experts with biases, windows block by block."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import (
    ROPE_TABLES,
    Config,
    Family,
    attention_of,
    experts_of,
)
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"attention sinks", "sliding window", "experts", "clipped experts"})
# α, β and limit, written in the module.
_SWIGLU = (1.702, 1.0, 7.0)


def _config(model: ModelShape) -> Config:
    experts = experts_of(model)
    if (experts.alpha, experts.beta, experts.limit) != _SWIGLU:
        raise Unsupported(f"mlx-lm's gpt_oss model clips its experts by {_SWIGLU} only")
    return layer_types(model) | {
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.used,
    }


def layer_types(model: ModelShape) -> Config:
    """The modules of this kind have one window, and blocks with and without it. Used by `olmo2`."""
    windows = [attention_of(block).window for block in model.blocks]
    if 0 not in windows or len(set(windows)) != 2:
        raise Unsupported(f"the sliding windows of this {model.architecture} are of other kinds")
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"layer_types": kinds, "sliding_window": max(windows)}


FAMILY = Family(
    model_type="gpt_oss",
    config=_config,
    biases=lambda model: frozenset({"query", "key", "value", "attention_output", "router"}),
    names=Names(router="mlp.router", experts="mlp.experts"),
    carries=ROPE_TABLES
    | _SHAPE
    | {"free head size", "biases of q, k and v", "attention output bias", "biases of experts"},
    needs=_SHAPE | {"biases of experts"},
)
