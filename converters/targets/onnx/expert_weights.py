"""Writes the stacks of experts: rows of gate and up alternate, codes become what one form asks.

A type with mins, w = s·q - m, becomes w' = (s/k)·(k·q + c - (z + c)) with z = round(k·m/s): of the
factors k that fit into 8 bits the one that rounds least, which moves a block by a few hundredths of
its step. A block where none fits is requantised from its smallest to its largest weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks import BLOCK_TYPES, Codes
from converters.targets.onnx.experts import ExpertSource, Stack

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
# Larger factors gain nothing: the step they divide is rounded to a few thousandths already.
MAX_FACTOR = 17
SLICE_ELEMENTS = 1 << 21


class ZeroPointed(NamedTuple):
    """weight = scale · (code - zero): u8 [n, groups, sub], f32 and u8 [n, groups]."""

    codes: Bytes
    scales: Floats
    zeros: Bytes


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
    """GGML blocks as unsigned codes; `zeros` are the middle where the type has no mins."""
    codes = BLOCK_TYPES[type_name].unpack(raw)
    if codes.minimum is None:
        middle = 1 << (bits - 1)
        q = (codes.q + np.int16(middle)).astype(np.uint8).reshape(len(codes.q), -1, codes.sub)
        found = ZeroPointed(q, codes.scale, np.full(codes.scale.shape, middle, np.uint8))
    else:
        found = zero_pointed(codes)
    return _narrowed(found, codes.sub, block)


def _narrowed(found: ZeroPointed, sub: int, block: int) -> ZeroPointed:
    """In blocks of `block`: a wider block's scale and zero point hold for each of its parts."""
    repeats = sub // block
    if repeats == 1:
        return found
    scales = np.repeat(found.scales, repeats, axis=1)
    zeros = np.repeat(found.zeros, repeats, axis=1)
    return ZeroPointed(found.codes.reshape(len(scales), -1, block), scales, zeros)


def zero_pointed(codes: Codes) -> ZeroPointed:
    """Codes with mins as 8-bit codes with integer zero points."""
    assert codes.minimum is not None
    q = codes.q.reshape(len(codes.q), -1, codes.sub).astype(np.int32)
    factor, shift, zero = _best_factor(q, codes.scale, codes.minimum)
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = (codes.scale / factor).astype(np.float32)
    found = q * factor[:, :, None] + shift[:, :, None]
    has_none = factor == 0
    if has_none.any():
        weights = q[has_none] * codes.scale[has_none][:, None] - codes.minimum[has_none][:, None]
        found[has_none], scales[has_none], zero[has_none] = _requantised(weights)
    return ZeroPointed(found.astype(np.uint8), scales, zero.astype(np.uint8))


def _best_factor(
    q: npt.NDArray[np.int32], scale: Floats, minimum: Floats
) -> tuple[npt.NDArray[np.int32], ...]:
    """(k, c, z + c) for each group; k is 0 where none fits."""
    smallest, largest = q.min(axis=2), q.max(axis=2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = minimum.astype(np.float64) / scale
    usable = np.isfinite(ratio) & (np.abs(ratio) < 256)
    ratio = np.where(usable, ratio, 0.0)
    best = np.full(ratio.shape, np.inf)
    factor, shift, zero = (np.zeros(ratio.shape, np.int32) for _ in range(3))
    for k in range(1, MAX_FACTOR + 1):
        rounded = np.rint(k * ratio).astype(np.int32)
        low, high = np.minimum(rounded, k * smallest), np.maximum(rounded, k * largest)
        error = np.abs(rounded / k - ratio)
        better = usable & (high - low <= 255) & (error < best)
        best = np.where(better, error, best)
        moved = np.where(low < 0, -low, np.minimum(0, 255 - high))
        factor = np.where(better, k, factor)
        shift = np.where(better, moved, shift)
        zero = np.where(better, rounded + moved, zero)
    return factor, shift, zero


def _requantised(
    weights: Floats,
) -> tuple[npt.NDArray[np.int32], Floats, npt.NDArray[np.int32]]:
    """[groups, sub] weights to codes, scales and zero points over the range that has 0 in it."""
    low = np.minimum(weights.min(axis=1), 0.0)
    high = np.maximum(weights.max(axis=1), 0.0)
    scales = ((high - low) / 255).astype(np.float32)
    safe = np.where(scales > 0, scales, np.float32(1))
    zeros = np.clip(np.rint(-low / safe), 0, 255).astype(np.int32)
    codes = np.clip(np.rint(weights / safe[:, None]) + zeros[:, None], 0, 255)
    return codes.astype(np.int32), scales, zeros


def packed(codes: Bytes, bits: int) -> Bytes:
    """[rows, columns] codes to [rows, columns · bits / 8], the first of a pair in the low half."""
    if bits == 8:
        return codes
    return codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
