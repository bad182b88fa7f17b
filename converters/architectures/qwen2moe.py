"""`qwen2moe`: Qwen 1.5 and 2 mixtures of experts.

Source: llama.cpp, `LLM_ARCH_QWEN2MOE` and `llm_build_qwen2moe`: qwen2's attention; the softmax over
all experts, not divided by the sum of the chosen ones; a shared expert times the sigmoid of its gate.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixture import experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    scale = header.number("expert_weights_scale", 0.0) or 1.0

    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=False)
        mixture = experts(header, index, is_normalised=False, scale=scale)
        return decoder.pre_norm_block(header, index, attention, mixture)

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
