"""`stablelm`: StableLM 3B and StableLM 2 (1.6B, Zephyr).

Source: llama.cpp, `LLM_ARCH_STABLELM` and `llm_build_stablelm`: LayerNorm, biases on q, k and v in some,
NEOX halves of a part of the head. StableLM 2 12B norms each head with weights of its own and is refused.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import Unsupported


def describe(header: Header) -> ModelShape:
    """Raises Unsupported for StableLM 2 12B."""
    if header.has_tensor("blk.0.attn_q_norm.weight"):
        raise Unsupported("stablelm with norms on q and k (StableLM 2 12B) is not supported yet")

    def block(index: int) -> BlockShape:
        attention = grouped_attention(header, index, interleaved=False)
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention, feed_forward, is_centered=True)

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    rope = {"global": rope_recipe(header, head_size)}
    return decoder.decoder(header, block, rope, is_centered=True)
