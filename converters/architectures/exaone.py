"""`exaone`: LG's EXAONE 3 and 3.5.

Source: llama.cpp, `LLM_ARCH_EXAONE` and `llm_build_exaone`: a llama that rotates NEOX halves, its
frequencies divided by `rope_freqs.weight`.
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
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
