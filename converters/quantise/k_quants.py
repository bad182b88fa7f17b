"""Q4_K, Q5_K and Q6_K: groups whose scales are integers under the scale of 256 weights.

Each group gets the scale that fits it best; rounding those scales to integers comes last, and the
codes are the nearest ones under what is really stored.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from converters.quantise.encoder import Bytes, Encoder, Floats, columns, halves, reciprocal, rows
from converters.quantise.search import fit_affine, fit_symmetric

_SIX_BITS = np.float32(63)
# As exact as one pass in steps of a tenth, and fewer.
_STAGES = (
    (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (-0.6, -0.3, 0.0, 0.3, 0.6),
)
_WIDTHS = tuple(tenth / 10 for tenth in range(-9, 10))


class _Affine(Encoder, is_abstract=True):
    """8 groups of 32 with six-bit scales and six-bit minima; d and dmin come first."""

    block_size = 256
    most: ClassVar[int]

    def encode(self, weights: Floats) -> Bytes:
        x = columns(weights, 32)
        scale, minimum = fit_affine(x, self.most, _STAGES)
        packed = np.empty((len(weights), self.type_size), np.uint8)
        scales, scale = _six_bit(scale.reshape(-1, 8), packed[:, 0:2])
        mins, minimum = _six_bit(minimum.reshape(-1, 8), packed[:, 2:4])
        packed[:, 4:16] = _six_bit_pairs(scales, mins)
        x += minimum.reshape(-1)
        x *= reciprocal(scale.reshape(-1))
        np.rint(x, out=x)
        np.clip(x, np.float32(0), np.float32(self.most), out=x)
        self._pack_codes(rows(x, 32).reshape(-1, 4, 2, 32), packed)
        return packed

    def _pack_codes(self, codes: Bytes, packed: Bytes) -> None:
        """Codes u8 [n, 4, 2, 32]: of each 64 the first 32 are low nibbles."""
        low = codes & np.uint8(15)
        nibbles = low[:, :, 0] | (low[:, :, 1] << np.uint8(4))
        packed[:, -128:] = nibbles.reshape(-1, 128)


class Q4_K(_Affine):
    name, type_size, most = "Q4_K", 144, 15


class Q5_K(_Affine):
    """As Q4_K, with 32 bytes of fifth bits before the codes: bit g is for weights 32·g to 32·g+31."""

    name, type_size, most = "Q5_K", 176, 31

    def _pack_codes(self, codes: Bytes, packed: Bytes) -> None:
        fifth = (codes >> np.uint8(4)).reshape(-1, 8, 32)
        fifth <<= np.arange(8, dtype=np.uint8)[:, None]
        np.bitwise_or.reduce(fifth, axis=1, out=packed[:, 16:48])
        super()._pack_codes(codes, packed)


class Q6_K(Encoder):
    """16 groups of 16 with signed eight-bit scales; d comes last."""

    name, block_size, type_size = "Q6_K", 256, 210

    def encode(self, weights: Floats) -> Bytes:
        x = columns(weights, 16)
        wanted = fit_symmetric(x, 32, _WIDTHS).reshape(-1, 16)
        extreme = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=1)[:, None], 1)
        scales = np.rint(wanted * (np.float32(-128) * reciprocal(extreme)))
        np.minimum(scales, np.float32(127), out=scales)
        d = halves(extreme / np.float32(-128))
        packed = np.empty((len(weights), self.type_size), np.uint8)
        packed[:, 208:] = d.view(np.uint8)
        packed[:, 192:208] = scales.astype(np.int8).view(np.uint8)
        x *= reciprocal((scales * d.astype(np.float32)).reshape(-1))
        np.rint(x, out=x)
        np.clip(x, np.float32(-32), np.float32(31), out=x)
        x += np.float32(32)
        _pack_six_bits(rows(x, 256), packed)
        return packed


def _six_bit(wanted: Floats, factor: Bytes) -> tuple[Bytes, Floats]:
    """Numbers [n, 8] as six-bit integers and as what those stand for; writes their fp16 factor."""
    largest = wanted.max(axis=1, keepdims=True)
    integers = np.rint(wanted * (_SIX_BITS * reciprocal(largest)))
    np.minimum(integers, _SIX_BITS, out=integers)
    half = halves(largest / _SIX_BITS)
    factor[:] = half.view(np.uint8)
    return integers.astype(np.uint8), integers * half.astype(np.float32)


def _six_bit_pairs(scales: Bytes, mins: Bytes) -> Bytes:
    """Integers below 64, u8 [n, 8] each, to 12 bytes; the layout is told in `converters.blocks`."""
    packed = np.empty((len(scales), 12), np.uint8)
    top, nibble, two, four = np.uint8(0x30), np.uint8(0x0F), np.uint8(2), np.uint8(4)
    packed[:, 0:4] = scales[:, :4] | ((scales[:, 4:] & top) << two)
    packed[:, 4:8] = mins[:, :4] | ((mins[:, 4:] & top) << two)
    packed[:, 8:12] = (scales[:, 4:] & nibble) | ((mins[:, 4:] & nibble) << four)
    return packed


def _pack_six_bits(codes: Bytes, packed: Bytes) -> None:
    """Codes u8 [n, 256]: of each 128, four strips of 32 share bytes."""
    strips = codes.reshape(-1, 2, 4, 32)
    low, high = strips & np.uint8(15), strips >> np.uint8(4)
    nibbles = low[:, :, :2] | (low[:, :, 2:] << np.uint8(4))
    packed[:, :128] = nibbles.reshape(-1, 128)
    high <<= np.array([0, 2, 4, 6], np.uint8)[:, None]
    packed[:, 128:192] = np.bitwise_or.reduce(high, axis=2).reshape(-1, 64)
