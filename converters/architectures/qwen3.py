"""`qwen3`: Qwen 3, and its embedding and reranking models (`pooling_type` last and rank).

Source: llama.cpp, `LLM_ARCH_QWEN3` and `llm_build_qwen3`: as qwen2 without biases, an RMSNorm on
each head of q and k before they are rotated, heads wider than E / H.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention(header, index), feed_forward)

    recipe = rope_recipe(header, attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def attention(header: Header, index: int) -> Attention:
    """Shared with `qwen3moe`."""
    return grouped_attention(header, index, interleaved=False, has_head_norms=True)
