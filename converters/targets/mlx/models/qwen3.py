"""`qwen3`, `qwen3moe` → mlx-lm's `qwen3`, `qwen3_moe`."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family, experts_of

_COMMON = ROPE_TABLES | {"tied output", "free head size", "norms of q and k"}
_NORMED = frozenset({"norms of q and k"})

FAMILY = Family(model_type="qwen3", carries=_COMMON, needs=_NORMED)


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "norm_topk_prob": experts.is_normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


MIXTURE = Family(
    model_type="qwen3_moe",
    config=_mixture,
    carries=_COMMON | {"experts", "unnormalised experts"},
    needs=_NORMED,
)
