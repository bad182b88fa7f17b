"""`olmo2` → mlx-lm's `olmo2`: no norm before a branch, one after it. OLMo 3 is refused for its windows."""

from __future__ import annotations

from converters.targets.mlx.models.family import ROPE_TABLES, Family
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

FAMILY = Family(
    model_type="olmo2",
    names=Names(
        post_attention_norm="post_attention_layernorm",
        feed_forward_norm="",
        post_feed_forward_norm="post_feedforward_layernorm",
    ),
    carries=ROPE_TABLES | _SHAPE | {"tied output", "free head size"},
    needs=_SHAPE,
)
