"""`olmo2`: OLMo 2 and 3.

Source: llama.cpp, `LLM_ARCH_OLMO2` and `llm_build_olmo2`: no norm before a branch and one after it;
q and k are normed over all their heads at once; OLMo 3 sees a sliding window in three of four
blocks, and scales its rotations (YaRN) only in those that see everything.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape, RopeRecipe
from converters.architectures.rope_recipe import plain_recipe, rope_recipe

WINDOW_PERIOD = 4


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.sandwich_block(
            header, index, _attention(header, index), feed_forward, has_pre_norms=False
        )

    return decoder.decoder(header, block, _ropes(header))


def _attention(header: Header, index: int) -> Attention:
    window = windows(header, WINDOW_PERIOD)(index)
    rope = "local" if window else "global"
    return grouped_attention(
        header, index, interleaved=False, rope=rope, window=window, has_head_norms=True
    )


def _ropes(header: Header) -> dict[str, RopeRecipe]:
    head_size = _attention(header, 0).head_size
    tables = {"global": rope_recipe(header, head_size)}
    if header.count("attention.sliding_window", 0):
        base = tables["global"].base
        tables["local"] = plain_recipe(header, head_size, default_base=base)
    return tables
