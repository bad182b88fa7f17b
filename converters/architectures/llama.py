"""`llama`: Llama 1-3, Mistral, Mixtral, TinyLlama, SmolLM2, Vicuna, Yi and what else exports as it;
`internlm2`: InternLM 2 and 2.5, which is one by another name.

Source: llama.cpp, `LLM_ARCH_LLAMA` in llama-model.cpp and `llm_build_llama`: rotary NORM pairs, the
rows of q and k stored for them; `rope_freqs.weight` (Llama 3) divides the frequencies; biases where
the file has them; `attention.sliding_window` has no effect there, and none here; Mixtral's experts
share the softmax over the chosen ones.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixture import experts, has_experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    scale = header.number("attention.scale", 0.0)

    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=True, scale=scale)
        is_mixture = has_experts(header, index)
        feed_forward = (experts if is_mixture else decoder.gated_feed_forward)(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
