"""`olmoe`: OLMoE.

Source: llama.cpp, `LLM_ARCH_OLMOE` and `llm_build_olmoe`: q and k are normed over all their heads at once,
NEOX halves; the softmax over all experts, not divided by the sum of the chosen ones.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.mixture import experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    scale = header.number("expert_weights_scale", 0.0) or 1.0

    def block(index: int) -> BlockShape:
        mixture = experts(header, index, is_normalised=False, scale=scale)
        return decoder.pre_norm_block(header, index, _attention(header, index), mixture)

    recipe = rope_recipe(header, _attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def _attention(header: Header, index: int) -> Attention:
    return grouped_attention(header, index, interleaved=False, has_head_norms=True)
