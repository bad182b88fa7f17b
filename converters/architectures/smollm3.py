"""`smollm3`: SmolLM3.

Source: llama.cpp, `LLM_ARCH_SMOLLM3` and `llm_build_smollm3`: llama, with no rotation in every
fourth block; that period is written there and in no key.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

PLAIN_PERIOD = 4


def describe(header: Header) -> ModelShape:
    scale = header.number("attention.scale", 0.0)

    def block(index: int) -> BlockShape:
        rope = "global" if (index + 1) % PLAIN_PERIOD else ""
        attention = grouped_attention(header, index, interleaved=True, rope=rope, scale=scale)
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
