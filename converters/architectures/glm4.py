"""`glm4`: GLM 4 (0414).

Source: llama.cpp, `LLM_ARCH_GLM4` and `llm_build_glm4`: NORM pairs on half of each head, biases on
q, k and v, norms before and after both branches, gate and up in one matrix; the blocks that predict
further ids (`nextn`) are left out. Files of the vision models say `rope.dimension_sections`, and
rotate NEOX halves.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    interleaved = not any(header.integers("rope.dimension_sections")[:1])

    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=interleaved)
        feed_forward = decoder.fused_feed_forward(header, index)
        return decoder.sandwich_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=interleaved).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
