"""`command-r`: Cohere's Command R (v01 and 08-2024) and Aya.

Source: llama.cpp, `LLM_ARCH_COMMAND_R` and `llm_build_command_r`: LayerNorm without bias, attention
and feed-forward network side by side on the same normed input, NORM pairs, a tied head, logits times
`logit_scale`. Command R+ norms each head with weights of its own and is refused.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import Unsupported


def describe(header: Header) -> ModelShape:
    """Raises Unsupported for Command R+."""
    if header.has_tensor("blk.0.attn_q_norm.weight"):
        raise Unsupported("command-r with norms on q and k (Command R+) is not supported yet")

    def block(index: int) -> BlockShape:
        return parallel_block(header, index, grouped_attention(header, index, interleaved=True))

    head_size = grouped_attention(header, 0, interleaved=True).head_size
    return decoder.decoder(
        header,
        block,
        {"global": rope_recipe(header, head_size)},
        logit_scale=header.number("logit_scale", 0.0) or 1.0,
        is_centered=True,
    )


def parallel_block(header: Header, index: int, attention: Attention) -> BlockShape:
    """Shared with `cohere2`."""
    norm = decoder.norm(header, f"blk.{index}.attn_norm", header.width, is_centered=True)
    return BlockShape(
        mixer=attention,
        feed_forward=decoder.gated_feed_forward(header, index),
        attention_norm=norm,
        is_parallel=True,
    )
