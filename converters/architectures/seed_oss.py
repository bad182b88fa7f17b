"""`seed_oss`: ByteDance's Seed-OSS.

Source: llama.cpp, `LLM_ARCH_SEED_OSS` and `llm_build_seed_oss`: a llama that rotates NEOX halves, with
biases on q, k and v; the norm before the feed-forward network is called `post_attention_norm`.
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
        return decoder.pre_norm_block(
            header,
            index,
            grouped_attention(header, index, interleaved=False, scale=scale),
            decoder.gated_feed_forward(header, index),
            feed_forward_norm="post_attention_norm",
        )

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
