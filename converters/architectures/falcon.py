"""`falcon`: Falcon 7B and 40B. (Falcon 3 is a `llama`.)

Source: llama.cpp, `LLM_ARCH_FALCON` and `llm_build_falcon`: LayerNorm, q, k and v in one matrix, NEOX
halves, both branches side by side, GELU by tanh without a gate; in the larger one attention reads a
norm of its own, `attn_norm_2`.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        stem, width = f"blk.{index}", header.width
        norm = decoder.norm(header, f"{stem}.attn_norm", width, is_centered=True)
        has_two = header.has_tensor(f"{stem}.attn_norm_2.weight")
        own = (
            decoder.norm(header, f"{stem}.attn_norm_2", width, is_centered=True)
            if has_two
            else norm
        )
        return BlockShape(
            mixer=grouped_attention(header, index, interleaved=False),
            feed_forward=decoder.plain_feed_forward(header, index, "gelu_tanh"),
            attention_norm=own,
            feed_forward_norm=norm if has_two else None,
            is_parallel=True,
        )

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    rope = {"global": rope_recipe(header, head_size)}
    return decoder.decoder(header, block, rope, is_centered=True)
