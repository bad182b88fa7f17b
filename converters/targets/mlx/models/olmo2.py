"""`olmo2` → mlx-lm's `olmo2`, or `olmo3` with windows: no norm before a branch, one after it; `olmoe`.

OLMo 3 rotates by the plain table in its windows, and by a scaled one of the same base elsewhere.
"""

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
from converters.targets.mlx.models.gpt_oss import layer_types
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset(
    {
        "norms of q and k",
        "norms after attention",
        "norms after the feed-forward",
        "attention without norm before",
        "feed-forward without norm before",
    }
)
_NAMES = Names(
    post_attention_norm="post_attention_layernorm",
    feed_forward_norm="",
    post_feed_forward_norm="post_feedforward_layernorm",
)


def _windowed(model: ModelShape) -> Config:
    for block in model.blocks:
        attention = attention_of(block)
        if (attention.rope == "local") != bool(attention.window):
            raise Unsupported("mlx-lm's olmo3 model rotates windows by a table of their own")
    local, whole = model.rope["local"], model.rope["global"]
    if local.base != whole.base or local.scaling != "none" or local.factors:
        raise Unsupported("mlx-lm's olmo3 model rotates windows by the plain table of one base")
    return layer_types(model)


FULL = Family(
    model_type="olmo2",
    names=_NAMES,
    carries=ROPE_TABLES | _SHAPE | {"tied output", "free head size"},
    needs=_SHAPE,
)
WINDOWED = Family(
    model_type="olmo3",
    config=_windowed,
    names=_NAMES,
    carries=ROPE_TABLES
    | _SHAPE
    | {"tied output", "free head size", "sliding window", "second rotation"},
    needs=_SHAPE | {"sliding window"},
)


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "norm_topk_prob": experts.is_normalised,
    }


MIXTURE = Family(
    model_type="olmoe",
    config=_mixture,
    carries=ROPE_TABLES
    | {"tied output", "free head size", "norms of q and k", "experts", "unnormalised experts"},
    needs=frozenset({"norms of q and k"}),
)


def family_of(model: ModelShape) -> Family:
    is_windowed = any(attention_of(block).window for block in model.blocks)
    return WINDOWED if is_windowed else FULL
