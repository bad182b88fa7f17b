"""Sums of codes and of their squares, group by group, in the codes' own bytes: exact and cheap.

Bytes are added in lanes of two, four and eight; no lane can overflow for groups of at most 128.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks.block_type import Bytes, bit_field

Lanes = npt.NDArray[np.uint64]
Sums = npt.NDArray[np.float64]
_LOW_BYTES, _LOW_PAIRS = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
_ONES, _LOW_HALF = np.uint64(0x0001000100010001), np.uint64(0xFFFFFFFF)
# The square of a larger code does not fit into a byte.
_LARGEST_SMALL = 15


class Moments(NamedTuple):
    """Of each group of `size` codes: their sum and the sum of their squares, f64 [groups]."""

    sums: Sums
    squares: Sums
    size: int


def moments_of(codes: Bytes, size: int, top: int) -> Moments:
    """Of codes u8 up to `top`, groups of 32, 64 or 128 one after the other."""
    sums = _byte_sums(_in_groups(codes, size))
    if top <= _LARGEST_SMALL:
        return Moments(sums, _byte_sums(_in_groups(codes * codes, size)), size)
    wide = codes.reshape(-1).astype(np.uint16)
    wide *= wide
    return Moments(sums, _pair_sums(_in_groups(wide, 2 * size)), size)


def moments_of_nibbles(packed: Bytes, size: int) -> Moments:
    """Of 4-bit codes, two to a byte."""
    lanes = packed.reshape(-1).view(np.uint64)
    low, high = bit_field(lanes, 0, 0x0F), bit_field(lanes, 4, 0x0F)
    sums = _byte_sums(_in_groups(low + high, size // 2))
    squares = [_byte_sums(_in_groups(_squares(each), size // 2)) for each in (low, high)]
    return Moments(sums, squares[0] + squares[1], size)


def _squares(lanes: Lanes) -> Bytes:
    small = lanes.view(np.uint8)
    return np.multiply(small, small, out=small)


def _in_groups(codes: np.ndarray, nbytes: int) -> Lanes:
    return codes.reshape(-1).view(np.uint64).reshape(-1, nbytes // 8)


def _byte_sums(lanes: Lanes) -> Sums:
    """The sum of each row's bytes."""
    pairs = (lanes >> np.uint64(8)) & _LOW_BYTES
    pairs += lanes & _LOW_BYTES
    return ((_row_sums(pairs) * _ONES) >> np.uint64(48)).astype(np.float64)


def _pair_sums(lanes: Lanes) -> Sums:
    """The sum of each row's 16-bit numbers."""
    fours = (lanes >> np.uint64(16)) & _LOW_PAIRS
    fours += lanes & _LOW_PAIRS
    total = _row_sums(fours)
    return ((total & _LOW_HALF) + (total >> np.uint64(32))).astype(np.float64)


def _row_sums(lanes: Lanes) -> Lanes:
    return functools.reduce(np.add, lanes.T)
