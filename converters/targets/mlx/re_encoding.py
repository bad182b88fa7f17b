"""GGML blocks with a scale for 16 weights to MLX's groups of 32, in 16-bit fixed point.

A weight is `scale*level + offset` under its sub-block's scale, and `unit*code + bias` under its
group's. So the code is a line in the level, and two lanes of bytes become codes at a time. Unit and
bias are rounded before the line is drawn: their rounding costs nothing then.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks import CodedBlockType
from converters.blocks.block_type import pack_lanes
from converters.gguf import TensorInfo
from converters.targets.mlx.floats import (
    Errors,
    Floats,
    Stored,
    check_range,
    stored,
    stored_above,
    stored_below,
    widened,
)
from converters.targets.mlx.forms import Form, Number

Bytes = npt.NDArray[np.uint8]
Lanes = npt.NDArray[np.uint16]
Words = npt.NDArray[np.uint64]
# What is done once for a sub-block wants long slices, what is done for every weight wants those
# that stay in the cache.
PLANNED_WEIGHTS, CACHED_WEIGHTS = 1 << 20, 1 << 18
_EVEN_BYTES, _ONES = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0001000100010001)
# fp32 has no fractions there, and its low 16 bits are the integer's.
_NO_FRACTIONS = np.float32(3 << 22)
# What rounding left is squared in 64ths of a step: 32 squares fit a lane.
_LEFT_BITS = 6
_LANE = np.float32(0xFFFF)
# No unit is smaller, so that each has an inverse in fp32.
_LEAST_UNIT = np.float32(2.0**-100)


class Ladder(NamedTuple):
    """The least and greatest level code of a type, and how many (nearly) even steps lie between."""

    bottom: int
    top: int
    steps: int

    @property
    def span(self) -> int:
        return self.top - self.bottom


_LADDERS = {
    "Q6_K": Ladder(0, 63, 63),
    "Q2_K": Ladder(0, 3, 3),
    "IQ2_XS": Ladder(85, 171, 5),
    "IQ2_S": Ladder(85, 171, 5),
    "IQ1_M": Ladder(119, 137, 9),
}


class ReEncoded(NamedTuple):
    """`codes` u8, flat, in one stream of bits; one of `scales` and `biases` per group."""

    codes: Bytes
    scales: Stored
    biases: Stored


class _Plan(NamedTuple):
    """Of each group what is stored, as it is and as fp32; of each sub-block its line.

    `factor` and `shift` [parts, groups] have it in each lane of a word, in fractions of a step; `slack` and
    `noise` f32 [groups] are what their rounding moves a code by: at most, in steps, and the mean
    square.
    """

    scales: Stored
    biases: Stored
    unit: Floats
    factor: Words
    shift: Words
    slack: Floats
    noise: Floats

    def lanes_of(self, groups: slice, sub: int) -> tuple[Lanes, Lanes]:
        """`factor` and `shift`, a lane for every two weights."""
        return _lanes(self.factor[:, groups], sub), _lanes(self.shift[:, groups], sub)


class _Line(NamedTuple):
    """Weights are `scale*(level - bottom) + offset`: f32 [parts, groups] each."""

    scale: Floats
    offset: Floats


def re_encode(
    raw: Bytes, kind: CodedBlockType, tensor: TensorInfo, form: Form, number: Number, errors: Errors
) -> ReEncoded:
    """Blocks u8 [n, type_size] to the nearest codes; adds to `errors`.

    The mean square root is stated within 1 %, and the largest error as a bound: it is at most a
    third lower. Raises MalformedFile, Unsupported.
    """
    codes = np.empty((len(raw), kind.block_size * form.bits // 8), np.uint8)
    step = PLANNED_WEIGHTS // kind.block_size
    slices = [
        _slice(raw[at], codes[at], kind, tensor, form, number, errors)
        for at in _slices(len(raw), step)
    ]
    scales, biases = (np.concatenate(each) for each in zip(*slices, strict=True))
    return ReEncoded(codes.reshape(-1), scales, biases)


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _slice(
    raw: Bytes,
    codes: Bytes,
    kind: CodedBlockType,
    tensor: TensorInfo,
    form: Form,
    number: Number,
    errors: Errors,
) -> tuple[Stored, Stored]:
    """Writes `codes`; scales and biases."""
    with np.errstate(invalid="ignore", over="ignore"):
        plan = _planned(raw, kind, tensor, form, number)
    per_block = kind.block_size // form.group
    squares = [
        _coded(kind.level_codes(raw[at]), plan.lanes_of(groups, kind.sub), form, codes[at])
        for at in _slices(len(raw), CACHED_WEIGHTS // kind.block_size)
        for groups in [slice(at.start * per_block, at.stop * per_block)]
    ]
    _add_errors(errors, np.concatenate(squares), plan, form.group)
    return plan.scales, plan.biases


def _planned(
    raw: Bytes, kind: CodedBlockType, tensor: TensorInfo, form: Form, number: Number
) -> _Plan:
    """Unit and bias so that every level has a code, whether or not the group has that level.

    The unit divides the widest sub-block's ladder into whole steps, and zero falls on a whole code:
    half of the weights lose next to nothing.
    """
    ladder, top = _LADDERS[kind.name], (1 << form.bits) - 1
    fine = top // ladder.steps * ladder.steps
    line = _line(kind, raw, ladder, form.group // kind.sub)
    reach = line.scale * np.float32(ladder.span)
    low = (np.minimum(reach, 0) + line.offset).min(axis=0)
    high = (np.maximum(reach, 0) + line.offset).max(axis=0)
    least = np.maximum(np.abs(reach).max(axis=0) * np.float32(1 / fine), _LEAST_UNIT)
    if kind.has_minimum:
        biases, bias = _kept(stored_below(low, number), low, tensor, number)
        unit = np.maximum(least, (high - bias) * np.float32(1 / top))
        scales, unit = _kept(stored_above(unit, number), unit, tensor, number)
    else:
        unit = np.maximum(least, (high - low) * np.float32(1 / (top - 1)))
        scales, unit = _kept(stored_above(unit, number), unit, tensor, number)
        zero = np.float32(fine * (kind.zero - ladder.bottom) / ladder.span % 1)
        low = (np.floor(low / unit + zero) - zero) * unit
        biases, bias = _kept(stored(low, number), low, tensor, number)
    return _Plan(scales, biases, unit, *_fixed(line, bias, unit, ladder, form.bits))


def _line(kind: CodedBlockType, raw: Bytes, ladder: Ladder, parts: int) -> _Line:
    scale, minimum = kind.scales(raw)
    scale = np.ascontiguousarray(scale.reshape(-1, parts).T)
    offset = scale * np.float32(ladder.bottom - kind.zero)
    return _Line(scale, offset if minimum is None else offset - minimum.reshape(-1, parts).T)


def _kept(
    numbers: Stored, exact: Floats, tensor: TensorInfo, number: Number
) -> tuple[Stored, Floats]:
    """What is stored, and that as fp32."""
    kept = widened(numbers)
    check_range(exact, kept, tensor.name, number)
    return numbers, kept


def _fixed(
    line: _Line, bias: Floats, unit: Floats, ladder: Ladder, bits: int
) -> tuple[Words, Words, Floats, Floats]:
    """`factor`, `shift`, `slack` and `noise` of a plan.

    They are held to where no level leaves its lane: a code cannot wrap, whatever was rounded.
    """
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
    return *words, slack, factor.mean(axis=0) / (step * step)


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


def _coded(levels: Bytes, line: tuple[Lanes, Lanes], form: Form, found: Bytes) -> Floats:
    """Writes `found`, codes in one stream of bits; what is left, squared, in steps: f32 [groups].

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
    down, bits = np.uint16(16 - form.bits), np.uint16(form.bits)
    codes = even >> down
    codes |= (odd >> down) << bits
    found.reshape(-1)[:] = pack_lanes(codes.view(np.uint64), form.bits)
    squares = _left_squared(even, odd, bits).view(np.uint64)
    total = functools.reduce(np.add, squares.reshape(-1, form.group // 8).T)
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


def _add_errors(errors: Errors, squares: Floats, plan: _Plan, group: int) -> None:
    squares *= np.float32(4.0**-_LEFT_BITS)
    largest = (np.sqrt(np.minimum(squares, np.float32(0.25))) + plan.slack) * plan.unit
    squares += plan.noise * np.float32(group)
    squares *= np.square(plan.unit)
    total = float(squares.sum(dtype=np.float64))
    errors.add_moments(float(largest.max(initial=0)), total, len(squares) * group)
