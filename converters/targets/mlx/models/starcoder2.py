"""`starcoder2` → mlx-lm's `starcoder2`, with biases everywhere.

Its GELU is the exact one where the file means the approximation by tanh; they differ by 5e-4 at most.
"""

from __future__ import annotations

from converters.targets.mlx.models.family import Family
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"layer norm", "feed-forward without gate", "gelu_tanh"})

FAMILY = Family(
    model_type="starcoder2",
    config=lambda model: {"norm_epsilon": model.epsilon},
    biases=lambda model: frozenset(
        {"query", "key", "value", "attention_output", "up", "down", "norm"}
    ),
    names=Names(up="mlp.c_fc", down="mlp.c_proj"),
    carries=_SHAPE
    | {"tied output", "biases of q, k and v", "attention output bias", "feed-forward biases"},
    needs=_SHAPE,
)
