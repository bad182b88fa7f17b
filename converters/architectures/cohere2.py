"""`cohere2`: Cohere's Command R7B and Command A.

Source: llama.cpp, `LLM_ARCH_COHERE2` and `llm_build_cohere2`: command-r, where three of four blocks
see a sliding window and rotate, and the fourth sees everything and does not.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.command_r import parallel_block
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

WINDOW_PERIOD = 4


def describe(header: Header) -> ModelShape:
    window = windows(header, WINDOW_PERIOD)

    def block(index: int) -> BlockShape:
        width = window(index)
        rope = "global" if width else ""
        attention = grouped_attention(header, index, interleaved=True, rope=rope, window=width)
        return parallel_block(header, index, attention)

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    return decoder.decoder(
        header,
        block,
        {"global": rope_recipe(header, head_size)},
        logit_scale=header.number("logit_scale", 0.0) or 1.0,
        is_centered=True,
    )
