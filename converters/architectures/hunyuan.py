"""`hunyuan-dense` and `hunyuan-moe`: Tencent's Hunyuan (0.5B to 7B, A13B).

Source: llama.cpp, `LLM_ARCH_HUNYUAN_DENSE`, `LLM_ARCH_HUNYUAN_MOE`, `llm_build_hunyuan_dense` and
`llm_build_hunyuan_moe`: NEOX halves, and only then a norm on each head of q and k; the experts share
the softmax over the chosen ones, and a shared one is added.
"""

from __future__ import annotations

from msgspec.structs import replace

from converters.architectures import decoder, mixture
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    scale = header.number("expert_weights_scale", 0.0) or 1.0

    def block(index: int) -> BlockShape:
        network = mixture.network(header, index, scale=scale)
        return decoder.pre_norm_block(header, index, _attention(header, index), network)

    recipe = rope_recipe(header, _attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def _attention(header: Header, index: int) -> Attention:
    attention = grouped_attention(header, index, interleaved=False, has_head_norms=True)
    return replace(attention, is_normed_after=True)
