"""`exaone4`: LG's EXAONE 4.

Source: llama.cpp, `LLM_ARCH_EXAONE4` and `llm_build_exaone4`: no norm before a branch and one after it, a
norm on each head of q and k, NEOX halves, their frequencies divided by `rope_freqs.weight`; the
model (64 blocks) sees a sliding window in three of four blocks and does not rotate in the fourth.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

LARGER_BLOCKS = 64
WINDOW, WINDOW_PERIOD = 4096, 4


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.sandwich_block(
            header, index, _attention(header, index), feed_forward, has_pre_norms=False
        )

    recipe = rope_recipe(header, _attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def _attention(header: Header, index: int) -> Attention:
    is_large = decoder.block_count(header) == LARGER_BLOCKS
    window = windows(header, WINDOW_PERIOD, WINDOW)(index) if is_large else 0
    rope = "global" if window or not is_large else ""
    return grouped_attention(
        header, index, interleaved=False, rope=rope, window=window, has_head_norms=True
    )
