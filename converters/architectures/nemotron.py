"""`nemotron`: NVIDIA's Nemotron 3 and 4, and Minitron.

Source: llama.cpp, `LLM_ARCH_NEMOTRON` and `llm_build_nemotron`: LayerNorm, whose 1 the file's weights
have already, NEOX halves of a part of the head, a feed-forward network without a gate that squares
what is above 0.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=False)
        feed_forward = decoder.plain_feed_forward(header, index, "relu_squared")
        return decoder.pre_norm_block(header, index, attention, feed_forward, is_centered=True)

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    rope = {"global": rope_recipe(header, head_size)}
    return decoder.decoder(header, block, rope, is_centered=True)
