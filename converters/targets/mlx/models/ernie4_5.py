"""`ernie4_5`, `ernie4_5-moe` → mlx-lm's `ernie4_5`, `ernie4_5_moe`, which rotate pairs as the file does.

One config key puts a bias on everything. The mixture's module knows no bias on choosing experts, which
the published mixtures have.
"""

from __future__ import annotations

from converters.architectures.experts import Experts
from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family, experts_of
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.models.routed import shared_experts


def _biases(model: ModelShape) -> frozenset[str]:
    linears = [linear for block in model.blocks for linear in block.linears()]
    if not any(linear.bias for linear in linears):
        return frozenset()
    return frozenset({"query", "key", "value", "attention_output", "gate", "up", "down"})


FAMILY = Family(
    model_type="ernie4_5",
    keeps_pairs=True,
    config=lambda model: {"use_bias": bool(_biases(model))},
    biases=_biases,
    carries=frozenset(
        {
            "tied output",
            "free head size",
            "biases of q, k and v",
            "attention output bias",
            "feed-forward biases",
        }
    ),
)


def _mixture(model: ModelShape) -> Config:
    experts, kinds = experts_of(model), [isinstance(b.feed_forward, Experts) for b in model.blocks]
    start, last = kinds.index(True), len(kinds) - 1 - kinds[::-1].index(True)
    period = next((step for step in range(1, last + 2) if _is_regular(kinds, start, step)), 0)
    if not period:
        raise Unsupported("mlx-lm's ernie4_5_moe model has experts in every n-th block")
    return {
        "use_bias": False,
        "moe_num_experts": experts.count,
        "moe_k": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "moe_num_shared_experts": shared_experts(experts),
        "moe_layer_start_index": start,
        "moe_layer_end_index": last,
        "moe_layer_interval": period,
    }


def _is_regular(kinds: list[bool], start: int, step: int) -> bool:
    """Whether the blocks with experts are the step-th, 2 step-th … from `start` to the last of them."""
    last = len(kinds) - 1 - kinds[::-1].index(True)
    return kinds == [start <= at <= last and (at + 1) % step == 0 for at in range(len(kinds))]


MIXTURE = Family(
    model_type="ernie4_5_moe",
    keeps_pairs=True,
    config=_mixture,
    names=Names(shared="mlp.shared_experts"),
    carries=frozenset(
        {
            "tied output",
            "free head size",
            "experts",
            "dense blocks among experts",
            "shared expert without gate",
        }
    ),
)
