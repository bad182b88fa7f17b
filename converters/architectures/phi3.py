"""`phi3`: Phi 3, 3.5, 4 and 4-mini.

Source: llama.cpp, `LLM_ARCH_PHI3` and `llm_build_phi3`: q, k and v in one matrix, gate and up in
another; NEOX halves, of a part of the head in 4-mini; longrope's short and long factors by the
context of the session, cos and sin times `rope.scaling.attn_factor`; the file's sliding window is
ignored, as it is there.
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
        feed_forward = decoder.fused_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
