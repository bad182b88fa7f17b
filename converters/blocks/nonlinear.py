"""IQ4: 4-bit codes that stand for 16 unevenly spaced integers, written as 8-bit codes.

Source: llama.cpp, `kvalues_iq4nl` and `dequantize_row_iq4_nl`, `dequantize_row_iq4_xs`.
"""

from __future__ import annotations

import numpy as np

from converters.blocks.block_type import (
    Bytes,
    CodedBlockType,
    Floats,
    half_floats,
    looked_up,
    nibble_pairs,
    spread,
    words,
)

_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_CODES = bytes(level + 128 for level in _LEVELS)


class IQ4_NL(CodedBlockType, bits=8, zero=128):
    """d, 16 bytes of codes: low halves are weights 0-15."""

    name, block_size, type_size, sub = "IQ4_NL", 32, 18, 32

    def _codes(self, raw: Bytes) -> Bytes:
        return looked_up(words(raw, 2, 18), 2, _CODES)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        return half_floats(raw, 0), None


class IQ4_XS(CodedBlockType, bits=8, zero=128):
    """d, 2 bytes of top scale bits, 4 bytes of low ones, 8 runs of codes as in IQ4_NL."""

    name, block_size, type_size, sub = "IQ4_XS", 256, 136, 32

    def _codes(self, raw: Bytes) -> Bytes:
        return looked_up(words(raw, 8, 136), 2, _CODES)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        tops = spread(words(raw, 2, 4, np.uint8), 2)
        tops <<= np.uint8(4)
        scales = (nibble_pairs(raw, 4, 8) | tops).view(np.int8)
        with np.errstate(invalid="ignore", over="ignore"):
            return half_floats(raw, 0) * (scales - np.int8(32)).astype(np.float32), None
