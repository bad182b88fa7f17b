"""Writes the stacks of experts: rows of gate and up alternate, codes become what one form asks.

A type with mins, w = s·q - m, becomes w' = (s/k)·(k·q + c - (z + c)) with z = round(k·m/s): of the
factors k that fit into 8 bits the one that rounds least, which moves a block by a few hundredths of
its step. A block where none fits is requantised from its smallest to its largest weight. Blocks become one
where the form asks for longer ones than the type has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks import BLOCK_TYPES, CodedBlockType, Levels
from converters.blocks.block_type import pack_codes
from converters.blocks.fixed_point import LADDERS, PLANNED_WEIGHTS, code_blocks, fixed_line, line_of
from converters.blocks.fixed_point import slices as slices_of
from converters.errors import Unsupported
from converters.targets.onnx.experts import ExpertSource, Stack

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
# Larger factors gain nothing: the step they divide is rounded to a few thousandths already.
MAX_FACTOR = 17
SLICE_ELEMENTS = 1 << 22
# fp16's least number.
_LEAST_SCALE = np.float32(2.0**-24)


class ZeroPointed(NamedTuple):
    """weight = scale · (code - zero): u8 [n, groups, sub], f32 and u8 [n, groups].

    `errors` f32 [n, groups]: how far the weights of a group are from the source's, at most; and
    `squares`, where it is known, the sum of their squares.
    """

    codes: Bytes
    scales: Floats
    zeros: Bytes
    errors: Floats
    squares: Floats | None = None


def slices(stack: Stack) -> Iterator[tuple[int, int, int]]:
    """(expert, first row of a source, rows) of a bounded number of weights each."""
    step = max(1, SLICE_ELEMENTS // (stack.columns * len(stack.sources)))
    rows = stack.sources[0].rows
    for expert in range(stack.experts):
        for start in range(0, rows, step):
            yield expert, start, min(step, rows - start)


def first_weight(source: ExpertSource, expert: int, row: int, columns: int) -> int:
    """The place in the tensor of the first weight of a source's row."""
    return (expert * source.stride + source.first + row) * columns


def interleaved(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """[rows, ·] of each source to [rows · sources, ·], alternating."""
    if len(arrays) == 1:
        return arrays[0]
    return np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def coded(type_name: str, raw: Bytes, bits: int, block: int) -> ZeroPointed:
    """GGML blocks as unsigned codes; `zeros` are the middle where the type has no mins.

    Raises Unsupported for a type without codes.
    """
    block_type = BLOCK_TYPES[type_name]
    if not isinstance(block_type, CodedBlockType):
        raise Unsupported(f"experts of type {type_name} have no codes")
    if block_type.sub < block:
        return _joined(block_type, raw, block)
    return _narrowed(_coded_slice(block_type.levels(raw), bits), block)


def _coded_slice(levels: Levels, bits: int) -> ZeroPointed:
    codes = levels.code.reshape(len(levels.code), -1, levels.sub)
    if levels.minimum is not None:
        return zero_pointed(codes, levels.scale, levels.minimum)
    middle, shape = 1 << (bits - 1), levels.scale.shape
    if middle != levels.zero:
        codes += np.uint8(middle - levels.zero)
    zeros, errors = np.full(shape, middle, np.uint8), np.zeros(shape, np.float32)
    return ZeroPointed(codes, levels.scale, zeros, errors)


def _narrowed(found: ZeroPointed, block: int) -> ZeroPointed:
    """In blocks of `block`: a wider block's scale and zero point hold for each of its parts."""
    repeats = found.codes.shape[2] // block
    if repeats == 1:
        return found
    return ZeroPointed(
        found.codes.reshape(len(found.codes), -1, block),
        np.repeat(found.scales, repeats, axis=1),
        np.repeat(found.zeros, repeats, axis=1),
        np.repeat(found.errors, repeats, axis=1),
    )


def _joined(kind: CodedBlockType, raw: Bytes, block: int) -> ZeroPointed:
    """Neighbouring blocks as one of `block` weights: 8 bits hold the range of both.

    The scales are fp16's numbers, which CUDA is given; they divide the wider block's levels into
    whole steps, so that it loses next to nothing.
    """
    codes = np.empty((len(raw), kind.block_size), np.uint8)
    parts = [
        _joined_slice(kind, raw[at], block, codes[at])
        for at in slices_of(len(raw), PLANNED_WEIGHTS // kind.block_size)
    ]
    shape = (len(raw), kind.block_size // block)
    joined = (np.concatenate(each).reshape(shape) for each in zip(*parts, strict=True))
    return ZeroPointed(codes.reshape(*shape, block), *joined)


def _joined_slice(
    kind: CodedBlockType, raw: Bytes, block: int, codes: Bytes
) -> tuple[Floats, Bytes, Floats, Floats]:
    """Writes `codes`; scales, zero points, errors and their squares of each group."""
    ladder = LADDERS[kind.name]
    with np.errstate(invalid="ignore", over="ignore"):
        line = line_of(kind, raw, block)
        low, high, widest = line.ends(ladder)
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        least = np.maximum(widest * np.float32(1 / ladder.finest(255)), _LEAST_SCALE)
        exact = np.maximum(least, (high - low) * np.float32(1 / 254))
        scales = _above_in_halves(exact)
        zeros = np.ceil(-low / scales)
    if not np.isfinite(scales).all():
        # Refused where scales are stored.
        return exact, np.zeros(len(exact), np.uint8), np.zeros_like(exact), np.zeros_like(exact)
    fixed = fixed_line(line, -zeros * scales, scales, ladder, 8)
    left = code_blocks(kind, raw, fixed, 8, block, codes)
    squares = left.squares * np.square(scales)
    return scales, zeros.astype(np.uint8), left.largest * scales, squares


def _above_in_halves(numbers: Floats) -> Floats:
    """Rounded up to fp16's numbers; infinite above them."""
    halves = numbers.astype(np.float16)
    halves.view(np.uint16)[:] += halves.astype(np.float32) < numbers
    return halves.astype(np.float32)


def zero_pointed(codes: Bytes, scale: Floats, minimum: Floats) -> ZeroPointed:
    """Scale · code - minimum as 8-bit codes with integer zero points. Overwrites the codes."""
    factor, zero = _best_factors(int(codes.max(initial=1)), scale, minimum)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scales = scale / factor
        # The zero point is off by a fraction of the new step; scale / factor itself rounds less.
        errors = np.abs(scales * zero - minimum)
    lost, weights = factor == 0, None
    if lost.any():
        weights = codes[lost] * scale[lost][:, None] - minimum[lost][:, None]
    _multiply(codes, factor)
    if zero.min(initial=0) < 0:
        shift = np.maximum(0, -zero)
        codes += shift.astype(np.uint8)[:, :, None]
        zero += shift
    if weights is not None:
        codes[lost], scales[lost], zero[lost], errors[lost] = _requantised(weights.T)
    return ZeroPointed(codes, scales, zero.astype(np.uint8), errors)


def _multiply(codes: Bytes, factor: Floats) -> None:
    """Each group by its own factor, eight codes at once: no product is above 255."""
    lanes, wide = codes.reshape(-1, codes.shape[2]).view(np.uint64), factor.astype(np.uint64)
    for lane in lanes.T:
        np.multiply(lane, wide.reshape(-1), out=lane)


def _best_factors(largest: int, scale: Floats, minimum: Floats) -> tuple[Floats, Floats]:
    """(k, z) for each group, whole numbers in f32; k is 0 where none fits.

    `largest` is the greatest code of all: what is true of it is true of every group.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = (minimum / scale).reshape(-1)
    np.copyto(ratio, np.float32(256), where=~np.isfinite(ratio))
    most = min(MAX_FACTOR, 255 // largest)
    factor = _free_factors(ratio, most)
    # Codes reach from 0 to k · largest, and the zero point must lie within 255 of both.
    is_far = (ratio < 0) | (ratio * np.float32(most) > 255)
    if is_far.any():
        factor[is_far] = _least_rounding(ratio[is_far], np.arange(most, 0, -1), largest)
    chosen = factor.astype(np.float32)
    return chosen.reshape(scale.shape), np.rint(ratio * chosen).reshape(scale.shape)


def _free_factors(ratio: Floats, most: int) -> npt.NDArray[np.uint8]:
    """From above half of `most`: half of such a factor rounds no less."""
    factors = np.arange(most, most // 2, -1)
    ends = np.array([ratio.min(), ratio.max()])
    is_last = ratio == ends[1]
    if (is_last | (ratio == ends[0])).all():  # IQ1_S has two ratios, IQ3_S one
        first, last = _least_rounding(ends, factors, None)
        return np.where(is_last, last, first)
    return _least_rounding(ratio, factors, None)


def _least_rounding(
    ratio: Floats, factors: npt.NDArray[np.int64], largest: int | None
) -> npt.NDArray[np.uint8]:
    """For each ratio the greatest of the factors whose product is nearest to a whole number.

    In units of the source's step. Where `largest` is given, 0 if none keeps codes and zero point.
    """
    column = factors.astype(np.float32)[:, None]
    error = ratio * column
    rounded = np.rint(error)
    np.subtract(rounded, error, out=error)
    np.abs(error, out=error)
    error /= column
    if largest is not None:
        error[(rounded > 255) | (rounded < column * largest - 255)] = np.inf
    least = np.minimum.reduce(error, axis=0)
    found = ((error == least) & np.isfinite(least)).view(np.uint8)
    found *= factors.astype(np.uint8)[:, None]
    return np.maximum.reduce(found, axis=0)


def _requantised(columns: Floats) -> tuple[Bytes, Floats, Floats, Floats]:
    """[sub, groups] over the range around 0: codes [groups, sub], scales, zero points, errors."""
    low = np.minimum(columns.min(axis=0), 0.0)
    high = np.maximum(columns.max(axis=0), 0.0)
    scales = ((high - low) / 255).astype(np.float32)
    safe = np.where(scales > 0, scales, np.float32(1))
    zeros = np.clip(np.rint(-low / safe), 0, 255)
    steps = columns / safe
    np.rint(steps, out=steps)
    steps += zeros
    np.clip(steps, 0, 255, out=steps)
    codes = np.ascontiguousarray(steps.astype(np.uint8).T)
    steps -= zeros
    steps *= scales
    steps -= columns
    return codes, scales, zeros, np.abs(steps, out=steps).max(axis=0)


def packed(codes: Bytes, bits: int) -> Bytes:
    """[rows, columns] codes to [rows, columns · bits / 8], the first of a pair in the low half."""
    if bits == 8:
        return codes
    return pack_codes(codes, bits).reshape(len(codes), -1)
