"""`arcee`: Arcee's AFM.

Source: llama.cpp, `LLM_ARCH_ARCEE` and `llm_build_arcee`: a llama whose feed-forward network has no gate
and squares what is above 0.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    scale = header.number("attention.scale", 0.0)

    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=True, scale=scale)
        feed_forward = decoder.plain_feed_forward(header, index, "relu_squared")
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
