"""The types of -1, 0 and 1 under one fp16 scale for 256 weights, written as 2-bit codes.

The scale is written twice, for 128 weights each: that is the longest block with a fast product.
Codes are counted down under a negated scale: so the fourth code, which no quantiser writes and which
means 2, has a place as well.
Source: llama.cpp, `dequantize_row_tq1_0`, `dequantize_row_tq2_0`.
"""

from __future__ import annotations

import numpy as np

from converters.blocks.block_type import (
    Bytes,
    CodedBlockType,
    Codes,
    Floats,
    half_floats,
    strips,
    words,
)


class _Ternary(CodedBlockType, is_abstract=True):
    block_size, sub = 256, 128
    scale_offset: int

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        return -np.repeat(half_floats(raw, self.scale_offset), 2, axis=1), None

    def unpack(self, raw: Bytes) -> Codes:
        """Counted up, under the file's own scale."""
        q, scale, minimum, sub = super().unpack(raw)
        return Codes(-q, -scale, minimum, sub)


class TQ2_0(_Ternary, bits=2, zero=2):
    """64 bytes of codes, d."""

    name, type_size, scale_offset = "TQ2_0", 66, 64

    def _codes(self, raw: Bytes) -> Bytes:
        return strips(~words(raw, 0, 64), 4, 2).view(np.uint8)


class TQ1_0(_Ternary, bits=2, zero=2):
    """Five codes in a byte: 32 bytes for weights 0-159, 16 for 160-239, 4 bytes of four for the rest.

    The byte is the fraction 0.abcde in base 3, times 256 and rounded up: multiplying by 3 moves the
    next digit out on top.
    """

    name, type_size, scale_offset = "TQ1_0", 54, 52

    def _codes(self, raw: Bytes) -> Bytes:
        codes = np.empty((len(raw), 256), np.uint8)
        for first, width, digits, start in (
            (0, 16, 5, 0),
            (16, 16, 5, 16),
            (32, 16, 5, 160),
            (48, 4, 4, 240),
        ):
            item = np.complex128 if width == 16 else np.uint32
            fraction = words(raw, first, first + width, np.uint8).astype(np.uint16)
            step = 2 if start < 160 and width == 16 else 1
            for digit in range(digits):
                fraction *= np.uint16(3)
                top = (fraction >> np.uint16(8)).astype(np.uint8)
                at = (start + digit * step * width) // width
                codes.view(item)[:, at] = top.view(item)[:, 0]
                fraction &= np.uint16(0xFF)
        return np.subtract(np.uint8(3), codes, out=codes)
