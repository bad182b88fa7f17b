"""`granite` and `granitemoe`: IBM's Granite 3 and 4 (dense, and mixtures of experts); `minicpm`: MiniCPM.

Source: llama.cpp, `LLM_ARCH_GRANITE` and `llm_build_granite`: NORM pairs; four multipliers, on the
embeddings, the attention scores, both branches of a block, and the logits, which are divided; the
experts share the softmax over the chosen ones, and a shared expert is added where there is one.
`LLM_ARCH_MINICPM` has the same graph; old files of it do not say their multipliers, which are the same
in all sizes.
"""

from __future__ import annotations

import math

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixture import experts, has_experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

MINICPM_EMBEDDING, MINICPM_DEPTH, MINICPM_WIDTH = 12.0, 1.4, 256.0


def describe_minicpm(header: Header) -> ModelShape:
    depth = math.sqrt(decoder.block_count(header))
    return _described(
        header,
        embedding_scale=header.number("embedding_scale", MINICPM_EMBEDDING),
        residual_scale=header.number("residual_scale", MINICPM_DEPTH / depth),
        logit_divisor=header.positive("logit_scale", header.width / MINICPM_WIDTH),
    )


def describe(header: Header) -> ModelShape:
    return _described(
        header,
        embedding_scale=header.number("embedding_scale", 0.0) or 1.0,
        residual_scale=header.number("residual_scale", 0.0) or 1.0,
        logit_divisor=header.positive("logit_scale"),
    )


def _described(
    header: Header, *, embedding_scale: float, residual_scale: float, logit_divisor: float
) -> ModelShape:
    scale = header.number("attention.scale", 0.0)
    rope = "global" if header.flag("rope.scaling.finetuned", True) else ""

    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=True, scale=scale, rope=rope)
        is_mixture = has_experts(header, index)
        feed_forward = (experts if is_mixture else decoder.gated_feed_forward)(header, index)
        return decoder.pre_norm_block(
            header, index, attention, feed_forward, residual_scale=residual_scale
        )

    head_size = grouped_attention(header, 0, interleaved=True, rope=rope).head_size
    return decoder.decoder(
        header,
        block,
        {"global": rope_recipe(header, head_size)} if rope else {},
        embedding_scale=embedding_scale,
        logit_scale=1.0 / logit_divisor,
    )
