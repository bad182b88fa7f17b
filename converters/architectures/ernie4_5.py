"""`ernie4_5` and `ernie4_5-moe`: Baidu's ERNIE 4.5, dense and mixtures of experts.

Source: llama.cpp, `LLM_ARCH_ERNIE4_5`, `llm_build_ernie4_5` and `llm_build_ernie4_5_moe`: a llama that
rotates NORM pairs; the experts share the softmax of the chosen ones, which are chosen with a bias added;
the first blocks are dense, and a shared expert is added.
"""

from __future__ import annotations

from converters.architectures import decoder, mixture
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=True)
        return decoder.pre_norm_block(header, index, attention, mixture.network(header, index))

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
