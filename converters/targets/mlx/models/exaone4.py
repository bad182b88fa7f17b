"""`exaone4` → mlx-lm's `exaone4`: no norm before a branch, one after it; windows by a word of L and G."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.command_r import window_period
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family, attention_of
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


def _config(model: ModelShape) -> Config:
    attentions = [attention_of(block) for block in model.blocks]
    config: Config = {"rope_scaling": {}, "sliding_window": None, "sliding_window_pattern": None}
    if not any(each.window for each in attentions):
        return config
    if any(bool(each.rope) != bool(each.window) for each in attentions):
        raise Unsupported("mlx-lm's exaone4 model rotates in all windows and only there")
    window, period = window_period(model)
    if period > len(model.blocks):
        raise Unsupported("mlx-lm's exaone4 model has a block that sees everything")
    pattern = "L" * (period - 1) + "G"
    return config | {"sliding_window": window, "sliding_window_pattern": pattern}


FAMILY = Family(
    model_type="exaone4",
    config=_config,
    names=Names(
        post_attention_norm="post_attention_layernorm",
        feed_forward_norm="",
        post_feed_forward_norm="post_feedforward_layernorm",
    ),
    carries=ROPE_TABLES
    | _SHAPE
    | {"tied output", "free head size", "sliding window", "block without rotation"},
    needs=_SHAPE,
)
