"""Levels of sub-blocks to the codes of longer groups, in 16-bit fixed point.

A weight is `scale*(level - bottom) + offset` under its sub-block's scale and `unit*code + bias` under
its group's, so the code is a line in the level: two lanes of bytes become codes at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks.block_type import Bytes, CodedBlockType, Floats, pack_lanes

Lanes = npt.NDArray[np.uint16]
Words = npt.NDArray[np.uint64]
# What is done once for a sub-block wants long slices, what is done for every weight wants those
# that stay in the cache.
PLANNED_WEIGHTS, CACHED_WEIGHTS = 1 << 20, 1 << 18
_EVEN_BYTES, _ONES = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0001000100010001)
# fp32 has no fractions there, and its low 16 bits are the integer's.
_NO_FRACTIONS = np.float32(3 << 22)
# What rounding left is squared in 64ths of a step: the squares of 32 weights fit a lane.
_LEFT_BITS, LONGEST_GROUP = 6, 32
_LANE = np.float32(0xFFFF)


class Ladder(NamedTuple):
    """The least and greatest level code of a type, and how many (nearly) even steps lie between."""

    bottom: int
    top: int
    steps: int

    @property
    def span(self) -> int:
        return self.top - self.bottom

    def finest(self, top: int) -> int:
        """The most codes up to `top` that divide the ladder's steps into whole ones."""
        return top // self.steps * self.steps


# Of the types with a scale for 16 weights.
LADDERS = {
    "Q2_K": Ladder(0, 3, 3),
    "Q3_K": Ladder(0, 7, 7),
    "Q6_K": Ladder(0, 63, 63),
    "IQ2_XS": Ladder(85, 171, 5),
    "IQ2_S": Ladder(85, 171, 5),
    "IQ1_M": Ladder(119, 137, 9),
    "NVFP4": Ladder(116, 140, 24),
}


class Line(NamedTuple):
    """Weights are `scale*(level - bottom) + offset`: f32 [parts, groups] each."""

    scale: Floats
    offset: Floats

    def ends(self, ladder: Ladder) -> tuple[Floats, Floats, Floats]:
        """Of each group what its ladders reach from and to, and the widest one: f32 [groups]."""
        reach = self.scale * np.float32(ladder.span)
        low = (np.minimum(reach, 0) + self.offset).min(axis=0)
        high = (np.maximum(reach, 0) + self.offset).max(axis=0)
        return low, high, np.abs(reach).max(axis=0)


class FixedLine(NamedTuple):
    """A code is `(factor*level + shift) >> (16 - bits)`: words [parts, groups], alike in all lanes.

    `slack` and `noise` f32 [groups] are what their rounding moves a code by: at most, in steps, and
    the mean square.
    """

    factor: Words
    shift: Words
    slack: Floats
    noise: Floats

    def lanes(self, groups: slice, sub: int) -> tuple[Lanes, Lanes]:
        """`factor` and `shift`, a lane for every two weights."""
        return _lanes(self.factor[:, groups], sub), _lanes(self.shift[:, groups], sub)


class Left(NamedTuple):
    """What is left of each group's weights, in its steps: the largest (at most), and their squares."""

    largest: Floats
    squares: Floats


def slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def line_of(kind: CodedBlockType, raw: Bytes, group: int) -> Line:
    """Of blocks u8 [n, type_size], for groups of so many weights."""
    scale, minimum = kind.scales(raw)
    parts = group // kind.sub
    scale = np.ascontiguousarray(scale.reshape(-1, parts).T)
    offset = scale * np.float32(LADDERS[kind.name].bottom - kind.zero)
    return Line(scale, offset if minimum is None else offset - minimum.reshape(-1, parts).T)


def fixed_line(line: Line, bias: Floats, unit: Floats, ladder: Ladder, bits: int) -> FixedLine:
    """It is held to where no level leaves its lane: a code cannot wrap, whatever was rounded."""
    step, half_span = np.float32(1 << (16 - bits)), np.float32(ladder.span / 2)
    inverse = step / unit
    factor, shift = line.scale * inverse, line.offset - bias
    whole = np.rint(factor)
    factor -= whole
    # Halves are rounded up, and the factor's rounding shows least at the middle level.
    factor *= half_span
    shift *= inverse
    shift += factor
    shift += step / 2
    start = np.rint(shift)
    end = start + whole * np.float32(ladder.span)
    if min(start.min(), end.min()) < 0 or max(start.max(), end.max()) > _LANE:
        np.clip(start, 0, _LANE, out=start)
        whole = np.trunc((np.clip(end, 0, _LANE) - start) / np.float32(ladder.span))
        factor = line.scale * inverse - whole
        factor *= np.float32(ladder.span)
    shift -= start
    start -= whole * np.float32(ladder.bottom)
    words = _words(whole), _words(start)
    slack = (np.abs(factor) + np.abs(shift)).max(axis=0) / step
    # The levels of a sub-block are spread over its ladder.
    factor *= factor
    factor *= np.float32(1 / 3)
    shift *= shift
    factor += shift
    return FixedLine(*words, slack, factor.mean(axis=0) / (step * step))


def code_blocks(
    kind: CodedBlockType, raw: Bytes, line: FixedLine, bits: int, group: int, found: Bytes
) -> Left:
    """Writes `found` u8 [n, bytes]: each block's codes in one stream of `bits` (5 or 8) each."""
    if group > LONGEST_GROUP:
        raise ValueError(f"groups are at most {LONGEST_GROUP} long, not {group}")
    per_block = kind.block_size // group
    squares = np.concatenate(
        [
            _code(kind.level_codes(raw[at]), line.lanes(groups, kind.sub), bits, group, found[at])
            for at in slices(len(raw), CACHED_WEIGHTS // kind.block_size)
            for groups in [slice(at.start * per_block, at.stop * per_block)]
        ]
    )
    squares *= np.float32(4.0**-_LEFT_BITS)
    largest = np.sqrt(np.minimum(squares, np.float32(0.25))) + line.slack
    squares += line.noise * np.float32(group)
    return Left(largest, squares)


def _code(levels: Bytes, line: tuple[Lanes, Lanes], bits: int, group: int, found: Bytes) -> Floats:
    """What is left, squared, in 64ths of a step: f32 [groups].

    The even weights lie in one array of lanes and the odd ones in another.
    """
    words = levels.reshape(-1).view(np.uint64)
    even = (words & _EVEN_BYTES).view(np.uint16)
    words >>= np.uint64(8)
    words &= _EVEN_BYTES
    odd = words.view(np.uint16)
    for lanes in (even, odd):
        lanes *= line[0]
        lanes += line[1]
    down, width = np.uint16(16 - bits), np.uint16(bits)
    codes = even >> down
    codes |= (odd >> down) << width
    found.reshape(-1)[:] = pack_lanes(codes.view(np.uint64), bits)
    squares = _left_squared(even, odd, width).view(np.uint64)
    total = functools.reduce(np.add, squares.reshape(-1, group // 8).T)
    total *= _ONES
    total >>= np.uint64(48)
    return total.astype(np.float32)


def _left_squared(even: Lanes, odd: Lanes, bits: np.uint16) -> Lanes:
    """What lies below the codes, less the half that was added. Overwrites both."""
    for lanes in (even, odd):
        lanes <<= bits
        lanes ^= np.uint16(0x8000)
        left = lanes.view(np.int16)
        left >>= np.int16(16 - _LEFT_BITS)
        lanes *= lanes
    even += odd
    return even


def _words(numbers: Floats) -> Words:
    """Whole numbers, each in all four lanes of a word."""
    low = (numbers + _NO_FRACTIONS).view(np.uint32) << np.uint32(16)
    low |= low >> np.uint32(16)
    words = low.astype(np.uint64)
    words |= words << np.uint64(32)
    return words


def _lanes(words: Words, sub: int) -> Lanes:
    """Words [parts, groups], each for `sub/2` lanes; group by group, flat."""
    parts, groups = words.shape
    lanes = np.empty((groups, parts, sub // 8), np.uint64)
    for part, place in np.ndindex(lanes.shape[1:]):
        lanes[:, part, place] = words[part]
    return lanes.reshape(-1).view(np.uint16)
