"""`apertus` → mlx-lm's `apertus`, in bfloat16, since squares do not fit into fp16.

Its rotation is read as llama's; the activation's four numbers are arrays of each block.
"""

from __future__ import annotations

from converters.targets.mlx.models.family import ROPE_TABLES, Family
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"norms of q and k", "feed-forward without gate", "xielu"})

FAMILY = Family(
    model_type="apertus",
    number="BF16",
    config=lambda model: {
        "mlp_bias": False,
        "attention_bias": False,
        "post_norm": False,
        "qk_norm": True,
    },
    names=Names(attention_norm="attention_layernorm", feed_forward_norm="feedforward_layernorm"),
    carries=ROPE_TABLES | _SHAPE | {"tied output"},
    needs=_SHAPE,
)
