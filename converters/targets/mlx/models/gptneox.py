"""`gptneox` → mlx-lm's `gpt_neox`: q, k and v of each head together, as many heads of each.

Its feed-forward network is four times as wide as the hidden state, and the base of its rotation whole.
"""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family, attention_of
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"layer norm", "feed-forward without gate", "gelu_tanh", "fused q, k and v"})


def _config(model: ModelShape) -> Config:
    attention, recipe = attention_of(model.blocks[0]), model.rope["global"]
    widths = {network.down.columns for network in model.networks()}
    if widths != {4 * model.embedding_length} or attention.heads != attention.kv_heads:
        raise Unsupported("mlx-lm's gpt_neox model has one width and as many heads of q, k and v")
    return {
        "layer_norm_eps": model.epsilon,
        "rotary_emb_base": recipe.base,
        "rotary_pct": recipe.dimensions / attention.head_size,
        "use_parallel_residual": model.blocks[0].is_parallel,
    }


FAMILY = Family(
    model_type="gpt_neox",
    config=_config,
    biases=lambda model: frozenset({"fused", "attention_output", "up", "down", "norm"}),
    names=Names(
        embedding="model.embed_in",
        output="model.embed_out",
        output_norm="model.final_layer_norm",
        block="model.h.{}",
        fused="attention.query_key_value",
        attention_output="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    ),
    fused="by head",
    carries=_SHAPE
    | {
        "parallel branches",
        "norms of both branches",
        "partial rotation",
        "biases of q, k and v",
        "attention output bias",
        "feed-forward biases",
    },
    needs=_SHAPE,
)
