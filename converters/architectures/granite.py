"""`granite` and `granitemoe`: IBM's Granite 3 and 4 (dense, and mixtures of experts); `minicpm`: MiniCPM.

Source: llama.cpp, `LLM_ARCH_GRANITE` and `llm_build_granite`: NORM pairs; four multipliers, on the
embeddings, the attention scores, both branches of a block, and the logits, which are divided; the
experts share the softmax over the chosen ones, and a shared expert is added where there is one.
`LLM_ARCH_MINICPM` has the same graph; old files of it do not say their multipliers, which are the same
in all sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.mixture import experts, has_experts
from converters.architectures.model import BlockShape, Mixer, ModelShape
from converters.architectures.rope_recipe import rope_recipe

MINICPM_EMBEDDING, MINICPM_DEPTH, MINICPM_WIDTH = 12.0, 1.4, 256.0


class Multipliers(NamedTuple):
    embedding: float
    residual: float
    logit_divisor: float


def describe_minicpm(header: Header) -> ModelShape:
    depth = math.sqrt(decoder.block_count(header))
    found = Multipliers(
        embedding=header.number("embedding_scale", MINICPM_EMBEDDING),
        residual=header.number("residual_scale", MINICPM_DEPTH / depth),
        logit_divisor=header.positive("logit_scale", header.width / MINICPM_WIDTH),
    )
    return described(header, partial(attention, header), 0, found)


def describe(header: Header) -> ModelShape:
    divisor = header.positive("logit_scale")
    return described(header, partial(attention, header), 0, multipliers(header, divisor))


def multipliers(header: Header, logit_divisor: float) -> Multipliers:
    """0 is none."""
    return Multipliers(
        embedding=header.number("embedding_scale", 0.0) or 1.0,
        residual=header.number("residual_scale", 0.0) or 1.0,
        logit_divisor=logit_divisor,
    )


def attention(header: Header, index: int) -> Attention:
    return grouped_attention(
        header,
        index,
        interleaved=True,
        scale=header.number("attention.scale", 0.0),
        rope="global" if header.flag("rope.scaling.finetuned", True) else "",
    )


def described(
    header: Header, mixer: Callable[[int], Mixer], attending: int, scales: Multipliers
) -> ModelShape:
    """The whole model; the block `attending` has heads to rotate."""

    def block(index: int) -> BlockShape:
        is_mixture = has_experts(header, index)
        feed_forward = (experts if is_mixture else decoder.gated_feed_forward)(header, index)
        return decoder.pre_norm_block(
            header, index, mixer(index), feed_forward, residual_scale=scales.residual
        )

    first = attention(header, attending)
    return decoder.decoder(
        header,
        block,
        {"global": rope_recipe(header, first.head_size)} if first.rope else {},
        embedding_scale=scales.embedding,
        logit_scale=1.0 / scales.logit_divisor,
    )
