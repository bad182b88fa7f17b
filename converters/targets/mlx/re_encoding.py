"""GGML blocks with a scale for 16 weights to MLX's groups of 32: unit and bias of each group.

Both are rounded before codes are chosen: their rounding costs nothing then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks import CodedBlockType
from converters.blocks.fixed_point import (
    LADDERS,
    PLANNED_WEIGHTS,
    FixedLine,
    Left,
    code_blocks,
    fixed_line,
    line_of,
    slices,
)
from converters.gguf import TensorInfo
from converters.targets.mlx.floats import Errors, Floats, Stored, rounded
from converters.targets.mlx.forms import Form, Number

Bytes = npt.NDArray[np.uint8]
# No unit is smaller, so that each has an inverse in fp32.
_LEAST_UNIT = np.float32(2.0**-100)


class ReEncoded(NamedTuple):
    """`codes` u8, flat, in one stream of bits; one of `scales` and `biases` per group."""

    codes: Bytes
    scales: Stored
    biases: Stored


class _Plan(NamedTuple):
    """Of each group what is stored, its unit as fp32, and the lines of its sub-blocks."""

    scales: Stored
    biases: Stored
    unit: Floats
    line: FixedLine


def re_encode(
    raw: Bytes, kind: CodedBlockType, tensor: TensorInfo, form: Form, number: Number, errors: Errors
) -> ReEncoded:
    """Blocks u8 [n, type_size] to the nearest codes; adds to `errors`.

    The mean square root is stated within 1 %, and the largest error as a bound: it is at most a
    third lower. Raises MalformedFile, Unsupported.
    """
    codes = np.empty((len(raw), kind.block_size * form.bits // 8), np.uint8)
    plans = list[_Plan]()
    for at in slices(len(raw), PLANNED_WEIGHTS // kind.block_size):
        with np.errstate(invalid="ignore", over="ignore"):
            plan = _planned(raw[at], kind, tensor, form, number)
        left = code_blocks(kind, raw[at], plan.line, form.bits, form.group, codes[at])
        _add_errors(errors, left, plan.unit, form.group)
        plans.append(plan)
    scales, biases = (np.concatenate(each) for each in list(zip(*plans, strict=True))[:2])
    return ReEncoded(codes.reshape(-1), scales, biases)


def _planned(
    raw: Bytes, kind: CodedBlockType, tensor: TensorInfo, form: Form, number: Number
) -> _Plan:
    """Unit and bias so that every level has a code, whether or not the group has that level.

    The unit divides the widest sub-block's ladder into whole steps, and zero falls on a whole code:
    half of the weights lose next to nothing.
    """
    ladder, top = LADDERS[kind.name], (1 << form.bits) - 1
    fine = ladder.finest(top)
    line = line_of(kind, raw, form.group)
    low, high, widest = line.ends(ladder)
    least = np.maximum(widest * np.float32(1 / fine), _LEAST_UNIT)
    if kind.has_minimum:
        biases, bias = rounded(low, tensor.name, number, "down")
        unit = np.maximum(least, (high - bias) * np.float32(1 / top))
        scales, unit = rounded(unit, tensor.name, number, "up")
    else:
        unit = np.maximum(least, (high - low) * np.float32(1 / (top - 1)))
        scales, unit = rounded(unit, tensor.name, number, "up")
        zero = np.float32(fine * (kind.zero - ladder.bottom) / ladder.span % 1)
        low = (np.floor(low / unit + zero) - zero) * unit
        biases, bias = rounded(low, tensor.name, number)
    return _Plan(scales, biases, unit, fixed_line(line, bias, unit, ladder, form.bits))


def _add_errors(errors: Errors, left: Left, unit: Floats, group: int) -> None:
    largest = float((left.largest * unit).max(initial=0))
    squares = float((left.squares * np.square(unit)).sum(dtype=np.float64))
    errors.add_moments(largest, squares, len(unit) * group)
