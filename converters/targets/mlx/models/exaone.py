"""`exaone` → mlx-lm's `exaone`: a llama under other names, rotating halves as the file does."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.targets.mlx.models.family import ROPE_TABLES, Config, Family
from converters.targets.mlx.models.names import Names


def _config(model: ModelShape) -> Config:
    return {"num_layers": len(model.blocks), "layer_norm_epsilon": model.epsilon}


FAMILY = Family(
    model_type="exaone",
    config=_config,
    names=Names(
        embedding="transformer.wte",
        output_norm="transformer.ln_f",
        block="transformer.h.{}",
        query="attn.attention.q_proj",
        key="attn.attention.k_proj",
        value="attn.attention.v_proj",
        attention_output="attn.attention.out_proj",
        gate="mlp.c_fc_0",
        up="mlp.c_fc_1",
        down="mlp.c_proj",
        attention_norm="ln_1",
        feed_forward_norm="ln_2",
    ),
    carries=ROPE_TABLES | {"tied output"},
)
