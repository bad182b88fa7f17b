"""The types of 32 weights with one fp16 scale, and in the `_1` types one fp16 minimum.

ggml adds that minimum where K-quants subtract theirs; `_scales` gives it negated.
"""

from __future__ import annotations

import numpy as np

from converters.blocks.block_type import (
    Bytes,
    CodedBlockType,
    Floats,
    half_floats,
    nibble_halves,
    paired_halves,
    splat,
    words,
)


class _Simple(CodedBlockType, is_abstract=True):
    block_size = sub = 32

    def _scales(self, raw: Bytes) -> tuple[Floats, Floats | None]:
        if not self.has_minimum:
            return half_floats(raw, 0), None
        both = half_floats(raw, 0, 2)
        return both[:, :1], -both[:, 1:]


def _fifth_bits(raw: Bytes, start: int) -> np.ndarray:
    """4 bytes at `start`, bit j for weight j, to the value 16 or 0 in each byte of u64 [n, 1, 2, 2]."""
    bits = np.unpackbits(raw[:, start : start + 4], axis=1, bitorder="little")
    return (bits.view(np.uint64) << np.uint64(4)).reshape(-1, 1, 2, 2)


class Q4_0(_Simple, bits=4, zero=8):
    name, type_size = "Q4_0", 18

    def _codes(self, raw: Bytes) -> Bytes:
        return nibble_halves(words(raw, 2, 18), 2).view(np.uint8)

    def packed(self, raw: Bytes) -> Bytes:
        return paired_halves(words(raw, 2, 18), 2)


class Q4_1(_Simple, bits=4, centre=8):
    name, type_size = "Q4_1", 20

    def _codes(self, raw: Bytes) -> Bytes:
        return nibble_halves(words(raw, 4, 20), 2).view(np.uint8)

    def packed(self, raw: Bytes) -> Bytes:
        return paired_halves(words(raw, 4, 20), 2)


class Q5_0(_Simple, bits=8, zero=16):
    name, type_size = "Q5_0", 22

    def _codes(self, raw: Bytes) -> Bytes:
        return (nibble_halves(words(raw, 6, 22), 2) | _fifth_bits(raw, 2)).view(np.uint8)


class Q5_1(_Simple, bits=8, centre=16):
    name, type_size = "Q5_1", 24

    def _codes(self, raw: Bytes) -> Bytes:
        return (nibble_halves(words(raw, 8, 24), 2) | _fifth_bits(raw, 4)).view(np.uint8)


class Q8_0(_Simple, bits=8, zero=128):
    """Signed bytes: flipping the top bit adds 128."""

    name, type_size = "Q8_0", 34

    def _codes(self, raw: Bytes) -> Bytes:
        return (words(raw, 2, 34) ^ splat(0x80)).view(np.uint8)
