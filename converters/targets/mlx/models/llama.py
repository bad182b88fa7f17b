"""`llama` → mlx-lm's `llama`, or `mixtral` with experts: rows of q and k go back to halves there.

One config key puts a bias on all four projections of attention, another on all three of the network.
"""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family, experts_of
from converters.targets.mlx.models.names import Names


def _config(model: ModelShape) -> Config:
    biased = biases(model)
    return {"attention_bias": "query" in biased, "mlp_bias": "gate" in biased}


def biases(model: ModelShape) -> frozenset[str]:
    """The groups of which any tensor has a bias."""
    found: set[str] = set()
    for block in model.blocks:
        if any(linear.bias for linear in block.mixer.linears()):
            found.update(("query", "key", "value", "attention_output"))
        if any(linear.bias for linear in block.feed_forward.linears()):
            found.update(("gate", "up", "down"))
    return frozenset(found)


FAMILY = Family(
    model_type="llama",
    config=_config,
    biases=biases,
    carries=ROPE_TABLES
    | {
        "tied output",
        "free head size",
        "biases of q, k and v",
        "attention output bias",
        "feed-forward biases",
    },
)


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return {"num_local_experts": experts.count, "num_experts_per_tok": experts.used}


MIXTURE = Family(
    model_type="mixtral",
    config=_mixture,
    names=Names(router="block_sparse_moe.gate", experts="block_sparse_moe.switch_mlp"),
    carries=frozenset({"tied output", "experts"}),
)
