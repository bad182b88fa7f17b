"""`granite` and `granitemoe`: IBM's Granite 3 and 4 (dense, and mixtures of experts).

Source: llama.cpp, `LLM_ARCH_GRANITE` and `llm_build_granite`: NORM pairs; four multipliers, on the
embeddings, the attention scores, both branches of a block, and the logits, which are divided; the
experts share the softmax over the chosen ones, and a shared expert is added where there is one.
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
    residual_scale = header.number("residual_scale", 0.0) or 1.0
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
        embedding_scale=header.number("embedding_scale", 0.0) or 1.0,
        logit_scale=1.0 / header.positive("logit_scale"),
    )
