"""IQ1, IQ2 and IQ3: runs of 8 or 4 weights that point into a codebook, with signs or shifts.

What has few enough levels in even steps is written in 4 bits (IQ3_S, IQ1_S), the rest in 8.
Source: llama.cpp, `dequantize_row_iq1_s` to `dequantize_row_iq3_s`; a codebook's entry i of 8
weights is lane i, so one look-up yields eight codes.
"""

from __future__ import annotations

import numpy as np

from converters.blocks.block_type import (
    Bytes,
    CodedBlockType,
    Codes,
    Floats,
    entries,
    half_floats,
    nibble_pairs,
    splat,
    spread,
    words,
)
from converters.blocks.codebooks import codebook, parity_sign_masks, sign_masks

_SIGNS = sign_masks()
_PARITY_SIGNS = parity_sign_masks()
# Above the code of 0.
_IQ2_LEVELS = tuple(128 + level for level in (8, 25, 43, 0))
_IQ3_XXS_LEVELS = tuple(128 + level for level in (4, 12, 20, 28, 36, 44, 52, 62))
_HALF, _QUARTER, _EIGHTH = np.float32(0.5), np.float32(0.25), np.float32(0.125)


class _IQuant(CodedBlockType, is_abstract=True):
    block_size = 256


def _signed(lanes: np.ndarray, masks: np.ndarray) -> Bytes:
    """128 + level, or 128 - level where the mask's byte is 0xFF. Overwrites both; no level is 0."""
    lanes ^= masks
    masks &= splat(1)
    lanes += masks
    return lanes.view(np.uint8)


def _nibbles(raw: Bytes, start: int, stop: int) -> Floats:
    """Bytes to their low and high halves in turn, f32 [n, 2 bytes]."""
    return nibble_pairs(raw, start, stop).astype(np.float32)


def _scaled(factor: Floats, multiples: Floats | np.float32) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        return factor * multiples


def _parity_masks(sevens: np.ndarray) -> np.ndarray:
    """u32 [n, 8] of four seven-bit signs each to u64 masks [n, 32]."""
    return entries(_PARITY_SIGNS, spread(sevens, 7))


class IQ2_XXS(_IQuant, bits=8, zero=128):
    """d, then per 32 weights 4 bytes of entries and a word of four signs and a scale."""

    name, type_size, sub = "IQ2_XXS", 66, 32
    _entries = codebook("IQ2_XXS", _IQ2_LEVELS, 8)

    def _codes(self, raw: Bytes) -> Bytes:
        pairs = words(raw, 2, 66, np.uint32).reshape(-1, 8, 2)
        index = np.ascontiguousarray(pairs[:, :, 0]).view(np.uint8)
        return _signed(entries(self._entries, index), _parity_masks(pairs[:, :, 1]))

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        steps = words(raw, 2, 66, np.uint32)[:, 1::2] >> np.uint32(28)
        return _scaled(half_floats(raw, 0), (steps.astype(np.float32) + _HALF) * _QUARTER), None


class IQ2_XS(_IQuant, bits=8, zero=128):
    """d, 32 words of a nine-bit entry and a seven-bit sign, 8 bytes of scales."""

    name, type_size, sub = "IQ2_XS", 74, 16
    _entries = codebook("IQ2_XS", _IQ2_LEVELS, 8)

    def _codes(self, raw: Bytes) -> Bytes:
        both = words(raw, 2, 66, np.uint16)
        masks = entries(_PARITY_SIGNS, both >> np.uint16(9))
        return _signed(entries(self._entries, both & np.uint16(0x1FF)), masks)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        steps = _nibbles(raw, 66, 74)
        return _scaled(half_floats(raw, 0), (steps + _HALF) * _QUARTER), None


class IQ2_S(_IQuant, bits=8, zero=128):
    """d, 32 low bytes of entries, 32 bytes of signs, 8 bytes of entries' top bits, 8 of scales."""

    name, type_size, sub = "IQ2_S", 82, 16
    _entries = codebook("IQ2_S", _IQ2_LEVELS, 8)

    def _codes(self, raw: Bytes) -> Bytes:
        index = spread(words(raw, 66, 74, np.uint8), 2).astype(np.uint16)
        index <<= np.uint16(8)
        index |= raw[:, 2:34]
        return _signed(entries(self._entries, index), entries(_SIGNS, raw[:, 34:66]))

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        steps = _nibbles(raw, 74, 82)
        return _scaled(half_floats(raw, 0), (steps + _HALF) * _QUARTER), None


class IQ3_XXS(_IQuant, bits=8, zero=128):
    """d, 64 bytes of entries of 4 weights, 8 words of four signs and a scale."""

    name, type_size, sub = "IQ3_XXS", 98, 32
    _entries = codebook("IQ3_XXS", _IQ3_XXS_LEVELS, 4)

    def _codes(self, raw: Bytes) -> Bytes:
        lanes = entries(self._entries, raw[:, 2:66]).view(np.uint64)
        return _signed(lanes, _parity_masks(words(raw, 66, 98, np.uint32)))

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        steps = words(raw, 66, 98, np.uint32) >> np.uint32(28)
        return _scaled(half_floats(raw, 0), (steps.astype(np.float32) + _HALF) * _HALF), None


class IQ3_S(_IQuant, bits=4, centre=8):
    """d, 64 low bytes of entries, 8 bytes of their ninth bits, 32 of signs, 4 of scales.

    The levels are the odd numbers from -15 to 15: as codes u from 0 to 15, `scale*(2u - 15)`.
    """

    name, type_size, sub = "IQ3_S", 110, 32
    _entries = codebook("IQ3_S", range(8), 4)

    def _codes(self, raw: Bytes) -> Bytes:
        ninths = np.unpackbits(raw[:, 66:74], axis=1, bitorder="little").astype(np.uint16)
        ninths <<= np.uint16(8)
        lanes = entries(self._entries, raw[:, 2:66] | ninths).view(np.uint64)
        lanes ^= entries(_SIGNS, raw[:, 74:106]) & splat(0x0F)
        lanes ^= splat(0x08)
        return lanes.view(np.uint8)

    def _scales(self, raw: Bytes) -> tuple[Floats, Floats]:
        step = self._steps(raw)
        return step * 2, step * 15

    def _steps(self, raw: Bytes) -> Floats:
        return _scaled(half_floats(raw, 0), 1 + 2 * _nibbles(raw, 106, 110))

    def unpack(self, raw: Bytes) -> Codes:
        """The odd numbers themselves."""
        raw = self._checked(raw)
        codes = self._codes(raw).reshape(len(raw), self.block_size).astype(np.int16)
        return Codes(2 * codes - np.int16(15), self._steps(raw), None, self.sub)


class IQ1_S(_IQuant, bits=4, centre=1):
    """d, 32 low bytes of entries, 8 words of entries' top bits, a scale and the sign of the shift.

    A weight is `scale*(level - 1 ± 1/8)` with levels 0, 1, 2.
    """

    name, type_size, sub = "IQ1_S", 50, 32
    _entries = codebook("IQ1_S", (0, 1, 2, 0), 8)

    def _codes(self, raw: Bytes) -> Bytes:
        index = spread(words(raw, 34, 50, np.uint16), 3).astype(np.uint16)
        index <<= np.uint16(8)
        index |= raw[:, 2:34]
        return entries(self._entries, index).view(np.uint8)

    def _scales(self, raw: Bytes) -> tuple[Floats, Floats]:
        scale, is_down = self._steps(raw)
        return scale, _scaled(scale, is_down * _QUARTER + np.float32(7 / 8))

    def _steps(self, raw: Bytes) -> tuple[Floats, Floats]:
        """Scales, and 1 where the shift is down."""
        fields = words(raw, 34, 50, np.uint16)
        odd = (fields >> np.uint16(11)) & np.uint16(0xE) | np.uint16(1)
        is_down = (fields >> np.uint16(15)).astype(np.float32)
        return _scaled(half_floats(raw, 0), odd.astype(np.float32)), is_down

    def unpack(self, raw: Bytes) -> Codes:
        """In eighths, shift included."""
        raw = self._checked(raw)
        scale, is_down = self._steps(raw)
        levels = self._codes(raw).reshape(len(raw), -1, self.sub).astype(np.int16)
        q = 8 * levels - np.int16(7) - 2 * is_down.astype(np.int16)[:, :, None]
        return Codes(q.reshape(len(raw), -1), _scaled(scale, _EIGHTH), None, self.sub)


class IQ1_M(_IQuant, bits=8, zero=128):
    """32 low bytes of entries, 16 bytes of two top nibbles each (three bits of entry, one of sign),
    8 bytes of sixteen three-bit scales, whose spare nibbles are d.

    A shift holds for 8 weights and a scale for 16, so the codes are in eighths, shift included.
    """

    name, type_size, sub = "IQ1_M", 56, 16
    # Shifted up, then down: the sign is the index's top bit.
    _entries = np.concatenate(
        [codebook("IQ1_S", levels, 8) for levels in ((121, 129, 137, 0), (119, 127, 135, 0))]
    )

    def _codes(self, raw: Bytes) -> Bytes:
        index = nibble_pairs(raw, 32, 48).astype(np.uint16)
        index <<= np.uint16(8)
        index |= raw[:, :32]
        return entries(self._entries, index).view(np.uint8)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        fields = words(raw, 48, 56, np.uint16)
        steps = 2 * spread(fields, 3).astype(np.float32) + 1
        tops = (fields >> np.uint16(12)) << np.array([0, 4, 8, 12], np.uint16)
        halves = np.bitwise_or.reduce(tops, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            factor = halves.view(np.float16).astype(np.float32)
        return _scaled(factor, steps * _EIGHTH), None
