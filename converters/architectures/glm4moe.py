"""`glm4moe`: GLM 4.5, 4.5 Air, 4.6 and 4.7.

Source: llama.cpp, `LLM_ARCH_GLM4_MOE` and `llm_build_glm4_moe`: NEOX halves on a part of each head
(by sections in the text side of 4.5 V), biases on q, k and v, norms on each head of q and k in the
larger ones; the norm before the feed-forward network is called `post_attention_norm`; experts by
sigmoid after the first dense blocks. Blocks that predict further ids are left out.
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
        return decoder.pre_norm_block(
            header,
            index,
            _attention(header, index),
            network,
            feed_forward_norm="post_attention_norm",
        )

    recipe = rope_recipe(header, _attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def _attention(header: Header, index: int) -> Attention:
    has_norms = header.has_tensor(f"blk.{index}.attn_q_norm.weight")
    return grouped_attention(header, index, interleaved=False, has_head_norms=has_norms)
