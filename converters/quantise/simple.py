"""The types of 32 weights with one fp16 scale, and in the `_1` types one fp16 minimum.

No search: the range of a group decides its scale, as in ggml's own quantisers.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from converters.quantise.encoder import (
    Bytes,
    Encoder,
    Floats,
    columns,
    halves,
    reciprocal,
    rows,
)
from converters.quantise.search import signed_extreme

_HALF = np.float32(0.5)


class Q8_0(Encoder):
    name, block_size, type_size = "Q8_0", 32, 34

    def encode(self, weights: Floats) -> Bytes:
        x = columns(weights, 32)
        scale = np.abs(x).max(axis=0) / np.float32(127)
        x *= reciprocal(scale)
        np.rint(x, out=x)
        packed = np.empty((len(scale), 34), np.uint8)
        packed[:, :2] = halves(scale).view(np.uint8).reshape(-1, 2)
        packed[:, 2:] = x.astype(np.int8).T.view(np.uint8)
        return packed


class _Nibbles(Encoder, is_abstract=True):
    """4 or 5 bits a code: low halves are weights 0-15, fifth bits lie before them."""

    block_size: ClassVar[int] = 32
    most: ClassVar[int]

    def _packed(self, codes: Bytes, *factors: Floats) -> Bytes:
        """Codes u8 [n, 32] behind the fp16 numbers of each block."""
        packed = np.empty((len(codes), self.type_size), np.uint8)
        for index, factor in enumerate(factors):
            at = slice(2 * index, 2 * index + 2)
            packed[:, at] = halves(factor).view(np.uint8).reshape(-1, 2)
        if self.most > 15:
            fifth = np.packbits(codes > 15, axis=1, bitorder="little")
            packed[:, 2 * len(factors) : 2 * len(factors) + 4] = fifth
            codes = codes & np.uint8(15)
        packed[:, -16:] = codes[:, :16] | (codes[:, 16:] << np.uint8(4))
        return packed


class _Symmetric(_Nibbles, is_abstract=True):
    """The number farthest from zero gets the lowest code, of which there is one more than above."""

    def encode(self, weights: Floats) -> Bytes:
        x = columns(weights, 32)
        zero = (self.most + 1) // 2
        scale = signed_extreme(x) / np.float32(-zero)
        x *= reciprocal(scale)
        x += np.float32(zero) + _HALF
        np.minimum(x, np.float32(self.most), out=x)
        return self._packed(rows(x, 32), scale)


class _Affine(_Nibbles, is_abstract=True):
    """From the smallest weight to the largest."""

    def encode(self, weights: Floats) -> Bytes:
        x = columns(weights, 32)
        low = x.min(axis=0)
        scale = (x.max(axis=0) - low) / np.float32(self.most)
        x -= low
        x *= reciprocal(scale)
        x += _HALF
        np.minimum(x, np.float32(self.most), out=x)
        return self._packed(rows(x, 32), scale, low)


class Q4_0(_Symmetric):
    name, type_size, most = "Q4_0", 18, 15


class Q4_1(_Affine):
    name, type_size, most = "Q4_1", 20, 15


class Q5_0(_Symmetric):
    name, type_size, most = "Q5_0", 22, 31


class Q5_1(_Affine):
    name, type_size, most = "Q5_1", 24, 31
