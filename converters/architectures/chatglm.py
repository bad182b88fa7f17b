"""`chatglm`: ChatGLM 3, GLM 4 9B and GLM Edge.

Source: llama.cpp, `LLM_ARCH_CHATGLM` and `llm_build_chatglm`: q, k and v in one matrix with biases in most,
NORM pairs on half of each head, gate and up in one matrix.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=True)
        feed_forward = decoder.fused_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
