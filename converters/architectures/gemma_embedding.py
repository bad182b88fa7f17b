"""`gemma-embedding`: EmbeddingGemma.

Source: llama.cpp, `LLM_ARCH_GEMMA_EMBEDDING` and `llm_build_gemma_embedding`: gemma3's blocks, every
id seeing every other, those of a window the ids at most half of it away; the mean of the hidden
states, then `dense_2` and `dense_3` without anything between.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from converters.architectures import decoder, gemma3
from converters.architectures.header import Header
from converters.architectures.model import Encoder, ModelShape
from converters.architectures.parts import Linear

POOLED_MEAN = 1


def describe(header: Header) -> ModelShape:
    model = decoder.decoder(
        header,
        lambda index: gemma3.block(header, index, 0.0),
        gemma3.ropes(header),
        embedding_scale=math.sqrt(header.width),
    )
    encoder = Encoder(
        pooling=decoder.pooling_of(header, POOLED_MEAN), projections=_projections(header)
    )
    return replace(model, output=None, encoder=encoder)


def _projections(header: Header) -> tuple[Linear, ...]:
    found: list[Linear] = []
    for stem in ("dense_2", "dense_3"):
        if header.has_tensor(f"{stem}.weight"):
            width = found[-1].rows if found else header.width
            found.append(header.linear(stem, columns=width))
    return tuple(found)
