"""`afmoe`: Arcee's Trinity.

Source: llama.cpp, `LLM_ARCH_AFMOE` and `llm_build_afmoe`: embeddings times √E, norms before and after both
branches and on each head of q and k, a gate on what is attended (`attn_gate`); three of four blocks see
a sliding window and rotate NEOX halves, the fourth sees everything and does not; experts by sigmoid
after the first dense blocks, and a shared one.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from converters.architectures import decoder, mixture
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

SIGMOID = 2
WINDOW_PERIOD = 4


def describe(header: Header) -> ModelShape:
    routing = mixture.routing_of(header, SIGMOID)

    def block(index: int) -> BlockShape:
        network = mixture.network(header, index, **routing)
        return decoder.sandwich_block(header, index, _attention(header, index), network)

    recipe = rope_recipe(header, _attention(header, 0).head_size)
    return decoder.decoder(
        header, block, {"global": recipe}, embedding_scale=math.sqrt(header.width)
    )


def _attention(header: Header, index: int) -> Attention:
    window = windows(header, WINDOW_PERIOD)(index)
    rope = "global" if (index + 1) % WINDOW_PERIOD else ""
    attention = grouped_attention(
        header, index, interleaved=False, rope=rope, window=window, has_head_norms=True
    )
    rows = attention.heads * attention.head_size
    gate = header.linear(f"blk.{index}.attn_gate", columns=header.width, rows=rows)
    return replace(attention, gate=gate)
