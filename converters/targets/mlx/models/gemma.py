"""`gemma`, `gemma2`, `gemma3` → mlx-lm's `gemma`, `gemma2`, `gemma3_text`: bfloat16, and norms less 1.

The modules add the 1 back. Hidden states of these models do not fit into fp16. Gemma 1's module has
the exact GELU where the file means the approximation by tanh; they differ by 5e-4 at most. Gemma 2's
module has no windows: the context ends where they do.
"""

from __future__ import annotations

import math

from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.command_r import window_period
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family, attention_of
from converters.targets.mlx.models.names import Names

_BASE = frozenset({"tied output", "embedding scale", "gelu_tanh"})
_SANDWICH = frozenset({"norms after attention", "norms after the feed-forward"})
_SANDWICH_NAMES = Names(
    post_attention_norm="post_attention_layernorm",
    feed_forward_norm="pre_feedforward_layernorm",
    post_feed_forward_norm="post_feedforward_layernorm",
)


def _checked(model: ModelShape) -> Config:
    """The modules multiply embeddings by √E, whatever the file says."""
    if not math.isclose(model.embedding_scale, math.sqrt(model.embedding_length), rel_tol=1e-6):
        raise Unsupported(f"mlx-lm's gemma models scale embeddings by √{model.embedding_length}")
    return {}


def _gemma2(model: ModelShape) -> Config:
    attention = attention_of(model.blocks[0])
    return _checked(model) | {
        "query_pre_attn_scalar": attention.scale**-2,
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": model.logit_softcap,
    }


def _gemma3(model: ModelShape) -> Config:
    window, period = window_period(model)
    for block in model.blocks:
        attention = attention_of(block)
        if (attention.rope == "local") != bool(attention.window):
            raise Unsupported("mlx-lm's gemma3 model rotates windows by a table of their own")
    local = model.rope["local"] if "local" in model.rope else model.rope["global"]
    return _checked(model) | {
        "query_pre_attn_scalar": attention_of(model.blocks[0]).scale ** -2,
        "sliding_window": window,
        "sliding_window_pattern": period,
        "rope_local_base_freq": local.base,
    }


GEMMA = Family(
    model_type="gemma",
    number="BF16",
    norm_shift=-1.0,
    config=_checked,
    carries=_BASE | {"free head size"},
    needs=_BASE,
)
GEMMA2 = Family(
    model_type="gemma2",
    number="BF16",
    norm_shift=-1.0,
    ignores_windows=True,
    config=_gemma2,
    names=_SANDWICH_NAMES,
    carries=_BASE
    | _SANDWICH
    | {"free head size", "attention scale", "attention soft cap", "logit soft cap"},
    needs=_BASE | _SANDWICH | {"attention soft cap", "logit soft cap"},
)
GEMMA3 = Family(
    model_type="gemma3_text",
    number="BF16",
    norm_shift=-1.0,
    config=_gemma3,
    names=_SANDWICH_NAMES,
    carries=_BASE
    | _SANDWICH
    | ROPE_TABLES
    | {
        "free head size",
        "attention scale",
        "norms of q and k",
        "sliding window",
        "second rotation",
    },
    needs=_SANDWICH | {"embedding scale", "gelu_tanh", "norms of q and k"},
)
