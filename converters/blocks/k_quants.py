"""The K-quants: 256 weights in sub-blocks of 16 or 32, whose scales are integers times an fp16.

Weights lie in strips: one run of bytes holds, in its bit fields from low to high, the weights of
that many consecutive strips of the same length.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.blocks.block_type import (
    Bytes,
    CodedBlockType,
    Floats,
    bit_field,
    half_floats,
    paired_halves,
    strips,
    words,
)


class _KQuant(CodedBlockType, is_abstract=True):
    block_size = 256


def _six_bit_pairs(raw: Bytes, start: int) -> tuple[Bytes, Bytes]:
    """12 bytes at `start` to 8 six-bit scales and 8 six-bit mins, u8 [n, 8] each.

    Bytes 0-3 hold scales 0-3 and the top bits of scales 4-7; bytes 4-7 the same for mins; bytes
    8-11 the low halves of scales 4-7 (low nibble) and mins 4-7 (high nibble).
    """
    first, second, third = words(raw, start, start + 12, np.uint32).T
    low, top = np.uint32(0x3F3F3F3F), np.uint32(0x30303030)
    nibble, two, four = np.uint32(0x0F0F0F0F), np.uint32(2), np.uint32(4)
    pairs = np.empty((2, len(raw), 2), np.uint32)
    pairs[0, :, 0] = first & low
    pairs[0, :, 1] = (third & nibble) | ((first >> two) & top)
    pairs[1, :, 0] = second & low
    pairs[1, :, 1] = ((third >> four) & nibble) | ((second >> two) & top)
    scales, mins = pairs.view(np.uint8)
    return scales, mins


def _scaled(factor: Floats, integers: np.ndarray) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        return factor * integers.astype(np.float32)


class Q2_K(_KQuant, bits=4, centre=2):
    """16 bytes of scales (low nibble) and mins (high nibble), 64 bytes of codes, d, dmin."""

    name, type_size, sub = "Q2_K", 84, 16

    def _codes(self, raw: Bytes) -> Bytes:
        return strips(words(raw, 16, 80), 4, 2).view(np.uint8)

    def _scales(self, raw: Bytes) -> tuple[Floats, Floats]:
        both = words(raw, 0, 16)
        scales, mins = (bit_field(both, shift, 0x0F).view(np.uint8) for shift in (0, 4))
        return _scaled(half_floats(raw, 80), scales), _scaled(half_floats(raw, 82), mins)


class Q3_K(_KQuant, bits=4, zero=4):
    """32 bytes of third bits, 64 bytes of two low bits, 12 bytes of six-bit scales less 32, d."""

    name, type_size, sub = "Q3_K", 110, 16

    def _codes(self, raw: Bytes) -> Bytes:
        low = strips(words(raw, 32, 96), 4, 2)
        low |= strips(words(raw, 0, 32), 4, 1, lift=2).reshape(low.shape)
        return low.view(np.uint8)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        return _scaled(half_floats(raw, 108), self.scale_steps(raw)), None

    def super_scale(self, raw: Bytes) -> Floats:
        """d, f32 [n, 1]."""
        return half_floats(raw, 108)

    def scale_steps(self, raw: Bytes) -> npt.NDArray[np.int8]:
        """The integers that d is multiplied by, int8 [n, 16], from -32 to 31."""
        low = strips(words(raw, 96, 104), 1, 4).view(np.uint8).reshape(-1, 16)
        tops = words(raw, 104, 108, np.uint32)
        shifts = np.array([0, 2, 4, 6], np.uint32)
        high = ((tops >> shifts) & np.uint32(0x03030303)).view(np.uint8)
        return (low | (high << np.uint8(4))).astype(np.int8) - np.int8(32)


class Q4_K(_KQuant, bits=4, centre=8):
    """d, dmin, 12 bytes of scales and mins, 128 bytes of codes."""

    name, type_size, sub = "Q4_K", 144, 32

    def _codes(self, raw: Bytes) -> Bytes:
        return strips(words(raw, 16, 144), 4, 4).view(np.uint8)

    def packed(self, raw: Bytes) -> Bytes:
        return paired_halves(words(raw, 16, 144), 4)

    def _scales(self, raw: Bytes) -> tuple[Floats, Floats]:
        scales, mins = _six_bit_pairs(raw, 4)
        return _scaled(half_floats(raw, 0), scales), _scaled(half_floats(raw, 2), mins)


class Q5_K(_KQuant, bits=8, centre=16):
    """As Q4_K, with 32 bytes of fifth bits before the codes."""

    name, type_size, sub = "Q5_K", 176, 32

    def _codes(self, raw: Bytes) -> Bytes:
        low = strips(words(raw, 48, 176), 4, 4)
        low |= strips(words(raw, 16, 48), 4, 1, lift=4).reshape(low.shape)
        return low.view(np.uint8)

    def _scales(self, raw: Bytes) -> tuple[Floats, Floats]:
        scales, mins = _six_bit_pairs(raw, 4)
        return _scaled(half_floats(raw, 0), scales), _scaled(half_floats(raw, 2), mins)


class Q6_K(_KQuant, bits=8, zero=32):
    """128 bytes of four low bits, 64 bytes of two high bits, 16 signed scales, d."""

    name, type_size, sub = "Q6_K", 210, 16

    def _codes(self, raw: Bytes) -> Bytes:
        low = strips(words(raw, 0, 128), 8, 4)
        low |= strips(words(raw, 128, 192), 4, 2, lift=4).reshape(low.shape)
        return low.view(np.uint8)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        return _scaled(half_floats(raw, 208), words(raw, 192, 208, np.int8)), None
