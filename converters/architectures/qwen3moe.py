"""`qwen3moe`: Qwen 3's mixtures of experts; `qwen3vlmoe`: the text side of Qwen 3 VL's.

Source: llama.cpp, `LLM_ARCH_QWEN3MOE` and `llm_build_qwen3moe`: qwen3's attention; the softmax over
all experts, its likeliest divided by their sum; no shared expert.
"""

from __future__ import annotations

from converters.architectures import decoder, qwen3
from converters.architectures.header import Header
from converters.architectures.mixture import experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    scale = header.number("expert_weights_scale", 0.0) or 1.0

    def block(index: int) -> BlockShape:
        mixture = experts(header, index, scale=scale)
        return decoder.pre_norm_block(header, index, qwen3.attention(header, index), mixture)

    recipe = rope_recipe(header, qwen3.attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe}, deepstack=qwen3.deepstack(header))
