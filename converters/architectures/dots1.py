"""`dots1`: dots.llm1; `bailingmoe2`: Ling and Ring 2.

Source: llama.cpp, `LLM_ARCH_DOTS1`, `llm_build_dots1`, `LLM_ARCH_BAILINGMOE2` and
`llm_build_bailingmoe2`: a norm on each head of q and k, NEOX halves, experts by sigmoid after the first
dense blocks and a shared one beside them. Ling has q, k and v in one matrix, rotates a part of the
head and chooses groups of experts first; its blocks that predict further ids are left out.
"""

from __future__ import annotations

from converters.architectures import decoder, mixture
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

SIGMOID = 2


def describe(header: Header) -> ModelShape:
    routing = mixture.routing_of(header, SIGMOID)

    def block(index: int) -> BlockShape:
        network = mixture.network(header, index, **routing)
        return decoder.pre_norm_block(header, index, _attention(header, index), network)

    recipe = rope_recipe(header, _attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def _attention(header: Header, index: int) -> Attention:
    return grouped_attention(header, index, interleaved=False, has_head_norms=True)
