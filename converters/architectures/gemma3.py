"""`gemma3`: Gemma 3's text model; an image tower in the file is left out.

Source: llama.cpp, `LLM_ARCH_GEMMA3` and `llm_build_gemma3`: as gemma2 without soft caps on
attention, with a norm on each head of q and k; five of six blocks see a sliding window and rotate by
a table of their own (base 10000, never scaled); the largest model (62 blocks) scales by 1/√(E / H).
"""

from __future__ import annotations

import math

from converters.architectures import decoder, gemma2
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape, RopeRecipe
from converters.architectures.rope_recipe import plain_recipe, rope_recipe

LARGEST_BLOCKS = 62
WINDOW_PERIOD = 6
LOCAL_BASE = 10000.0


def describe(header: Header) -> ModelShape:
    scale = gemma2.query_scale(header, LARGEST_BLOCKS)
    return decoder.decoder(
        header,
        lambda index: block(header, index, scale),
        ropes(header),
        embedding_scale=math.sqrt(header.width),
        logit_softcap=header.number("final_logit_softcapping", 0.0),
    )


def block(header: Header, index: int, scale: float) -> BlockShape:
    """Shared with `gemma-embedding`."""
    feed_forward = decoder.gated_feed_forward(header, index, activation="gelu_tanh")
    return decoder.sandwich_block(header, index, attention(header, index, scale), feed_forward)


def attention(header: Header, index: int, scale: float = 0.0) -> Attention:
    window = windows(header, WINDOW_PERIOD)(index)
    return grouped_attention(
        header,
        index,
        interleaved=False,
        rope="local" if window else "global",
        scale=scale,
        window=window,
        has_head_norms=True,
    )


def ropes(header: Header) -> dict[str, RopeRecipe]:
    """`local` only where some block sees a window."""
    head_size = attention(header, 0).head_size
    tables = {"global": rope_recipe(header, head_size)}
    if header.count("attention.sliding_window", 0):
        tables["local"] = plain_recipe(header, head_size, default_base=LOCAL_BASE)
    return tables
