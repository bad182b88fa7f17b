"""`gemma`: Gemma 1 and CodeGemma.

Source: llama.cpp, `LLM_ARCH_GEMMA` and `llm_build_gemma`: NEOX halves, embeddings times √E (the tied
head is not), GELU by tanh; the file's norms have their 1 added already.
"""

from __future__ import annotations

import math

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=False)
        feed_forward = decoder.gated_feed_forward(header, index, activation="gelu_tanh")
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    return decoder.decoder(
        header,
        block,
        {"global": rope_recipe(header, head_size)},
        embedding_scale=math.sqrt(header.width),
    )
