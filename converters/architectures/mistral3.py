"""`mistral3`: Ministral 3 and Mistral Small 3 and later, as llama with queries that sharpen with length.

Source: llama.cpp, `LLM_ARCH_MISTRAL3` and `llm_build_mistral3`: YaRN whose magnitude is divided by
that of `yarn_log_multiplier`; queries at position p times 1 + β ln(1 + floor(p / original context)),
β from `attention.temperature_scale`. A projector's tensors in the file are left out.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixture import experts, has_experts
from converters.architectures.model import BlockShape, ModelShape, Temperature
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    scale = header.number("attention.scale", 0.0)

    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=True, scale=scale)
        is_mixture = has_experts(header, index)
        feed_forward = (experts if is_mixture else decoder.gated_feed_forward)(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward)

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    recipe = rope_recipe(header, head_size)
    return decoder.decoder(header, block, {"global": recipe}, temperature=temperature(header))


def temperature(header: Header) -> Temperature | None:
    strength = header.number("attention.temperature_scale", 0.0)
    if not strength:
        return None
    length = header.count("rope.scaling.original_context_length", 0)
    return Temperature(strength=strength, length=length or decoder.context_length(header))
