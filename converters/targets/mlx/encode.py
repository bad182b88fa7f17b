"""GGML blocks to MLX's packed codes, scales and biases, with the error measured weight by weight.

Works in slices that stay in the cache. Decides nothing: the form comes from `forms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks import BLOCK_TYPES, CodedBlockType, Levels
from converters.blocks.block_type import pack_codes
from converters.blocks.fp4 import Fp4BlockType
from converters.blocks.k_quants import Q3_K
from converters.errors import MalformedFile
from converters.gguf import TensorInfo
from converters.targets.mlx.floats import Errors, Floats, Stored, check_range, stored, widened
from converters.targets.mlx.forms import Form, Number

Bytes = npt.NDArray[np.uint8]
# As fp32 they stay in the second-level cache.
SLICE_WEIGHTS = 1 << 16
# Of E8M0 and E4M3: not a number.
_MX_NAN, _NV_NAN, _SIGN_BIT = 0xFF, 0x7F, 0x80


class Encoded(NamedTuple):
    """`codes` u8, flat, `bits` per weight, low bits first; the others flat, one per group.

    `scales` are bytes and `biases` None in the float4 forms.
    """

    codes: Bytes
    scales: npt.NDArray[np.float32 | np.float16 | np.uint16 | np.uint8]
    biases: Stored | None


class _Groups(NamedTuple):
    """Codes u8 [n, group] of weights `scale*code + bias`, f32 [n, 1] each."""

    codes: Bytes
    scale: Floats
    bias: Floats


def encode(raw: Bytes, tensor: TensorInfo, form: Form, number: Number, errors: Errors) -> Encoded:
    """Blocks u8 [n, type_size]; adds to `errors`. Raises MalformedFile, Unsupported."""
    kind = BLOCK_TYPES[tensor.type_name]
    assert isinstance(kind, CodedBlockType)
    if isinstance(kind, Fp4BlockType):
        return _float4(raw, kind, tensor, errors)
    slices = [
        _affine(part, kind, tensor, form, number, errors) for part in _cached(raw, kind.block_size)
    ]
    return Encoded(
        np.concatenate([each.codes for each in slices]),
        np.concatenate([each.scales for each in slices]),
        np.concatenate([each.biases for each in slices if each.biases is not None]),
    )


def _cached(raw: Bytes, block_size: int) -> Iterator[Bytes]:
    step = SLICE_WEIGHTS // block_size
    for start in range(0, len(raw), step):
        yield raw[start : start + step]


def _affine(
    raw: Bytes, kind: CodedBlockType, tensor: TensorInfo, form: Form, number: Number, errors: Errors
) -> Encoded:
    if form.kind == "re-encoded":
        return _re_encoded(kind.levels(raw), tensor, form, number, errors)
    groups = _products(kind, raw) if isinstance(kind, Q3_K) else _kept(kind, raw)
    scales = _stored(groups.scale, tensor, number)
    biases = _stored(groups.bias, tensor, number)
    _measure(groups, widened(scales), widened(biases), (1 << form.bits) - 1, errors)
    return Encoded(pack_codes(groups.codes, form.bits), scales.reshape(-1), biases.reshape(-1))


def _stored(numbers: Floats, tensor: TensorInfo, number: Number) -> Stored:
    rounded = stored(numbers, number)
    check_range(numbers, widened(rounded), tensor.name, number)
    return rounded


def _measure(groups: _Groups, scale: Floats, bias: Floats, top: int, errors: Errors) -> None:
    """What rounding did: an error linear in the code, so the codes' moments give its mean square.

    The largest is that of the first or the last code, whether or not a group has them.
    """
    scale, bias = scale - groups.scale, bias - groups.bias
    size = groups.codes.shape[1]
    if not (scale.any() or bias.any()):
        errors.add_moments(0.0, 0.0, groups.codes.size)
        return
    largest = max(float(np.abs(scale * code + bias).max()) for code in (0, top))
    codes = groups.codes.astype(np.float32)
    sums = (codes @ np.ones(size, np.float32)).astype(np.float64)
    squares = np.einsum("ij,ij->i", codes, codes).astype(np.float64)
    s, b = scale[:, 0].astype(np.float64), bias[:, 0].astype(np.float64)
    total = float((s * s * squares + 2 * s * b * sums + size * b * b).sum())
    errors.add_moments(largest, max(total, 0.0), groups.codes.size)


def _kept(kind: CodedBlockType, raw: Bytes) -> _Groups:
    levels = kind.levels(raw)
    scale = levels.scale.reshape(-1, 1)
    bias = scale * np.float32(-levels.zero)
    if levels.minimum is not None:
        bias = bias - levels.minimum.reshape(-1, 1)
    return _Groups(levels.code.reshape(-1, levels.sub), scale, bias)


def _products(kind: Q3_K, raw: Bytes) -> _Groups:
    """A weight is d·(s·q) with s·q from -124 to 128, so one d for 128 weights is exact.

    Codes are counted down from 128, under a negated scale, so that all of them fit a byte.
    """
    q, _, _, sub = kind.unpack(raw)
    factor = kind.super_scale(raw)
    steps = kind.scale_steps(raw)
    codes = np.int16(128) - q.reshape(len(raw), -1, sub) * steps[:, :, None]
    scale = -np.repeat(factor, 2, axis=1).reshape(-1, 1)
    return _Groups(codes.astype(np.uint8).reshape(-1, 128), scale, scale * np.float32(-128))


def _re_encoded(
    levels: Levels, tensor: TensorInfo, form: Form, number: Number, errors: Errors
) -> Encoded:
    """The nearest codes between each group's least and largest weight.

    Scale and bias are rounded before the codes are chosen: their rounding costs nothing then. With
    weights `scale*level + offset`, the code is that line over again in units of the new scale.
    """
    parts = form.group // levels.sub
    # One row per place in a sub-block: every step below runs along thousands of them.
    level = np.ascontiguousarray(levels.code.reshape(-1, levels.sub).T)
    scale, offset = _line(levels)
    low, high = _weight_range(level, scale, offset, parts)
    biases = _stored(low, tensor, number)
    span = high - widened(biases)
    top = np.float32((1 << form.bits) - 1)
    scales = _stored(np.maximum(span, 0) * (np.float32(1) / top), tensor, number)
    unit = widened(scales)
    inverse = np.divide(np.float32(1), unit, out=np.zeros_like(unit), where=unit > 0)
    wide_unit, wide_inverse, wide_bias = (
        np.repeat(each, parts) for each in (unit, inverse, widened(biases))
    )
    steps = level.astype(np.float32)
    steps *= scale * wide_inverse
    steps += (offset - wide_bias) * wide_inverse
    rounded = steps + np.float32(0.5)
    np.maximum(rounded, np.float32(0), out=rounded)
    np.minimum(rounded, top, out=rounded)
    codes = rounded.astype(np.uint8)
    steps -= codes
    steps *= wide_unit
    errors.add(steps)
    _add_flat(errors, span[unit == 0], form.group)
    return Encoded(pack_codes(np.ascontiguousarray(codes.T), form.bits), scales, biases)


def _line(levels: Levels) -> tuple[Floats, Floats]:
    """Scale and offset of each sub-block: a weight is `scale*code + offset`."""
    scale = levels.scale.reshape(-1)
    offset = scale * np.float32(-levels.zero)
    if levels.minimum is not None:
        offset = offset - levels.minimum.reshape(-1)
    return scale, offset


def _weight_range(level: Bytes, scale: Floats, offset: Floats, parts: int) -> tuple[Floats, Floats]:
    """Least and largest weight of each group of `parts` sub-blocks, from their extreme levels."""
    ends = [scale * each + offset for each in (level.min(axis=0), level.max(axis=0))]
    low, high = np.minimum(*ends), np.maximum(*ends)
    return low.reshape(-1, parts).min(axis=1), high.reshape(-1, parts).max(axis=1)


def _add_flat(errors: Errors, spans: Floats, group: int) -> None:
    """Groups too flat for a scale above zero: the error is at most what is left of the weight."""
    if spans.size:
        left = np.abs(spans.astype(np.float64))
        errors.add_moments(float(left.max()), float(np.square(left).sum()) * group, 0)


def _float4(raw: Bytes, kind: Fp4BlockType, tensor: TensorInfo, errors: Errors) -> Encoded:
    """The sign of an E4M3 scale is ignored by ggml, and its NaN is 0 there; not so in MLX."""
    errors.add_moments(0.0, 0.0, len(raw) * kind.block_size)
    scales = kind.scale_bytes(raw).reshape(-1)
    is_nv = kind.sub == 16
    if is_nv:
        scales = np.where(scales == _NV_NAN, np.uint8(0), scales & np.uint8(~_SIGN_BIT & 0xFF))
    if (scales == (_NV_NAN if is_nv else _MX_NAN)).any():
        raise MalformedFile(f"tensor {tensor.name!r} holds a scale that is not a number")
    return Encoded(pack_codes(kind.codes(raw), 4), np.ascontiguousarray(scales), None)
