"""`apertus`: the Swiss AI Initiative's Apertus.

Source: llama.cpp, `LLM_ARCH_APERTUS`, `llm_build_apertus` and `ggml_xielu`: a norm on each head of q and k,
NEOX halves, their frequencies divided by `rope_freqs.weight`; a feed-forward network without a gate,
bent by xIELU with numbers of its own in each block (`xielu.*`, keys without a prefix).
"""

from __future__ import annotations

from msgspec.structs import replace

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.parts import Xielu
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        feed_forward = decoder.plain_feed_forward(header, index, "xielu")
        bent = replace(feed_forward, xielu=_xielu(header, index))
        return decoder.pre_norm_block(header, index, _attention(header, index), bent)

    recipe = rope_recipe(header, _attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def _attention(header: Header, index: int) -> Attention:
    scale = header.number("attention.scale", 0.0)
    return grouped_attention(header, index, interleaved=False, scale=scale, has_head_norms=True)


def _xielu(header: Header, index: int) -> Xielu:
    return Xielu(
        positive=header.number_of_block("xielu.alpha_p", index),
        negative=header.number_of_block("xielu.alpha_n", index),
        beta=header.number_of_block("xielu.beta", index),
        eps=header.number_of_block("xielu.eps", index),
    )
