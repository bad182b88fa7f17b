"""`qwen2`: Qwen 1.5, 2 and 2.5, and distillations on them.

Source: llama.cpp, `LLM_ARCH_QWEN2` in llama-model.cpp and `llm_build_qwen2`: rotary NEOX halves,
biases on q, k and v, the small ones tied; some long-context files carry YaRN.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape


def describe(header: Header) -> ModelShape:
    """Raises Unsupported for bidirectional variants."""
    header.refuse_bidirectional()

    def block(index: int) -> BlockShape:
        attention = decoder.grouped_attention(header, index, interleaved=False)
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    return decoder.decoder(header, block, {"global": decoder.rope_recipe(header)})
