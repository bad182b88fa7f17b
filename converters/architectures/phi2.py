"""`phi2`: Phi 1, 1.5 and 2.

Source: llama.cpp, `LLM_ARCH_PHI2` and `llm_build_phi2`: LayerNorm, biases everywhere, on the head too,
NEOX halves of a part of the head, both branches side by side, GELU by tanh without a gate.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        norm = decoder.norm(header, f"blk.{index}.attn_norm", header.width, is_centered=True)
        return BlockShape(
            mixer=grouped_attention(header, index, interleaved=False),
            feed_forward=decoder.plain_feed_forward(header, index, "gelu_tanh"),
            attention_norm=norm,
            is_parallel=True,
        )

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    rope = {"global": rope_recipe(header, head_size)}
    return decoder.decoder(header, block, rope, is_centered=True)
