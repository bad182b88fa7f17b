"""`lfm2` → mlx-lm's `lfm2`: attention in some blocks, a short convolution in the others."""

from __future__ import annotations

from converters.architectures.mixers import Attention, ShortConvolution
from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"short convolution", "norms of q and k", "tied output"})


def _config(model: ModelShape) -> Config:
    mixers = [block.mixer for block in model.blocks]
    lengths = {each.length for each in mixers if isinstance(each, ShortConvolution)}
    if len(lengths) > 1:
        raise Unsupported(f"mlx-lm's lfm2 model has one kernel length, not {sorted(lengths)}")
    width = model.blocks[0].feed_forward.down.columns
    return {
        "norm_eps": model.epsilon,
        "conv_bias": False,
        "conv_L_cache": max(lengths),
        "block_dim": model.embedding_length,
        "block_ff_dim": width,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [at for at, each in enumerate(mixers) if isinstance(each, Attention)],
    }


FAMILY = Family(
    model_type="lfm2",
    config=_config,
    names=Names(
        output_norm="model.embedding_norm",
        attention_output="self_attn.out_proj",
        query_norm="self_attn.q_layernorm",
        key_norm="self_attn.k_layernorm",
        gate="feed_forward.w1",
        up="feed_forward.w3",
        down="feed_forward.w2",
        attention_norm="operator_norm",
        feed_forward_norm="ffn_norm",
    ),
    carries=_SHAPE,
    needs=_SHAPE,
)
