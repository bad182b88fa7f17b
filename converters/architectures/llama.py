"""`llama`: Llama 1-3, Mistral, TinyLlama, SmolLM2, Vicuna, Yi and what else exports as it.

Source: llama.cpp, `LLM_ARCH_LLAMA` in llama-model.cpp and `llm_build_llama`: rotary NORM pairs, the
rows of q and k stored for them; `rope_freqs.weight` (Llama 3) divides the frequencies; biases where
the file has them; `attention.sliding_window` has no effect there, and none here.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape


def describe(header: Header) -> ModelShape:
    """Raises Unsupported for mixtures of experts (Mixtral) and bidirectional variants."""
    header.refuse_experts()
    header.refuse_bidirectional()

    def block(index: int) -> BlockShape:
        attention = decoder.grouped_attention(header, index, interleaved=True)
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    return decoder.decoder(header, block, {"global": decoder.rope_recipe(header)})
