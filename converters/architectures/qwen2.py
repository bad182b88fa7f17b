"""`qwen2`: Qwen 1.5, 2 and 2.5, and distillations and embedding models on them; `qwen2vl`: the text side
of Qwen 2 VL and 2.5 VL.

Source: llama.cpp, `LLM_ARCH_QWEN2` in llama-model.cpp and `llm_build_qwen2`: rotary NEOX halves,
biases on q, k and v, the small ones tied; some long-context files carry YaRN. `LLM_ARCH_QWEN2VL` and
`llm_build_qwen2vl` add rotation by sections: see `rope_recipe`.
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
