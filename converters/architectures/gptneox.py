"""`gptneox`: Pythia, GPT-NeoX, Dolly, RedPajama and StableLM Alpha.

Source: llama.cpp, `LLM_ARCH_GPTNEOX` and `llm_build_gptneox`: LayerNorm, biases everywhere, q, k and v in
one matrix, NEOX halves of a part of the head, GELU by tanh without a gate; with
`use_parallel_residual` both branches read the same x, each through a norm of its own.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe


def describe(header: Header) -> ModelShape:
    is_parallel = header.flag("use_parallel_residual", True)

    def block(index: int) -> BlockShape:
        stem, width = f"blk.{index}", header.width
        return BlockShape(
            mixer=grouped_attention(header, index, interleaved=False),
            feed_forward=decoder.plain_feed_forward(header, index, "gelu_tanh"),
            attention_norm=decoder.norm(header, f"{stem}.attn_norm", width, is_centered=True),
            feed_forward_norm=decoder.norm(header, f"{stem}.ffn_norm", width, is_centered=True),
            is_parallel=is_parallel,
        )

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    rope = {"global": rope_recipe(header, head_size)}
    return decoder.decoder(header, block, rope, is_centered=True)
