"""`glm4` → mlx-lm's `glm4`, which rotates pairs or halves as the file does: no rows are moved."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import Config, Family, attention_of
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"fused gate", "norms after attention", "norms after the feed-forward"})


def _config(model: ModelShape) -> Config:
    rotated, head_size = model.rope["global"].dimensions, attention_of(model.blocks[0]).head_size
    return {
        "partial_rotary_factor": rotated / head_size,
        "attention_bias": bool(projection_biases(model)),
        "rope_traditional": attention_of(model.blocks[0]).interleaved,
    }


def projection_biases(model: ModelShape) -> frozenset[str]:
    """All three projections where any of them has one. Shared with `glm4moe`."""
    attentions = [attention_of(block) for block in model.blocks]
    linears = [linear for each in attentions for linear in (each.query, each.key, each.value)]
    has_any = any(linear and linear.bias for linear in linears)
    return frozenset({"query", "key", "value"} if has_any else ())


FAMILY = Family(
    model_type="glm4",
    keeps_pairs=True,
    config=_config,
    biases=projection_biases,
    names=Names(
        post_attention_norm="post_self_attn_layernorm",
        post_feed_forward_norm="post_mlp_layernorm",
    ),
    carries=_SHAPE | {"free head size", "partial rotation", "biases of q, k and v"},
    needs=_SHAPE,
)
