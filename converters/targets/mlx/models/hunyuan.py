"""`hunyuan-dense` → mlx-lm's `hunyuan_v1_dense`, which norms heads after rotating them, too.

Its mixtures have no module here: mlx-lm's `hunyuan` does not divide by the sum of the chosen experts.
"""

from __future__ import annotations

from converters.targets.mlx.models.family import Family
from converters.targets.mlx.models.llama import biases
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"norms of q and k", "norms after rotation"})
_PROJECTIONS = frozenset({"query", "key", "value", "attention_output"})

FAMILY = Family(
    model_type="hunyuan_v1_dense",
    config=lambda model: {"attention_bias": "query" in biases(model)},
    biases=lambda model: biases(model) & _PROJECTIONS,
    names=Names(query_norm="self_attn.query_layernorm", key_norm="self_attn.key_layernorm"),
    carries=_SHAPE
    | {"tied output", "free head size", "biases of q, k and v", "attention output bias"},
    needs=_SHAPE,
)
