"""`gemma2`: Gemma 2.

Source: llama.cpp, `LLM_ARCH_GEMMA2` and `llm_build_gemma2_iswa`: as gemma, with norms after both
branches too, soft caps on attention (50) and logits (30), a sliding window in every even block, and
a scale of 1/√(E / H) in the largest model (46 blocks).
"""

from __future__ import annotations

import math

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

LARGEST_BLOCKS = 46


def describe(header: Header) -> ModelShape:
    window = windows(header, 2)
    softcap = header.number("attn_logit_softcapping", 50.0)
    scale = query_scale(header, LARGEST_BLOCKS)

    def block(index: int) -> BlockShape:
        attention = grouped_attention(
            header, index, interleaved=False, scale=scale, window=window(index), softcap=softcap
        )
        feed_forward = decoder.gated_feed_forward(header, index, activation="gelu_tanh")
        return decoder.sandwich_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    return decoder.decoder(
        header,
        block,
        {"global": rope_recipe(header, head_size)},
        embedding_scale=math.sqrt(header.width),
        logit_softcap=header.number("final_logit_softcapping", 30.0),
    )


def query_scale(header: Header, largest_blocks: int) -> float:
    """0 for 1/√head_size; the largest model of a generation divides the width by its heads."""
    if decoder.block_count(header) != largest_blocks:
        return 0.0
    heads = header.counts("attention.head_count", 1)[0]
    return math.sqrt(heads / header.width)
