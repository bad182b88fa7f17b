"""GGML blocks to MLX's packed codes, scales and biases, with the error measured weight by weight.

Works in slices. Decides nothing: the form comes from `forms`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.blocks import BLOCK_TYPES, CodedBlockType
from converters.blocks.block_type import pack_codes
from converters.blocks.fixed_point import slices
from converters.blocks.fp4 import Fp4BlockType
from converters.blocks.k_quants import Q3_K
from converters.blocks.moments import Moments, moments_of, moments_of_nibbles
from converters.errors import MalformedFile
from converters.gguf import TensorInfo
from converters.targets.mlx.floats import Errors, Floats, Stored, rounded
from converters.targets.mlx.forms import Form, Number
from converters.targets.mlx.re_encoding import re_encode

Bytes = npt.NDArray[np.uint8]
# Long enough for what each slice costs beside its weights.
SLICE_WEIGHTS = 1 << 20
# Of E8M0 and E4M3: not a number.
_MX_NAN, _NV_NAN, _SIGN_BIT = 0xFF, 0x7F, 0x80


class Encoded(NamedTuple):
    """`codes` u8, flat, `bits` per weight, low bits first; the others flat, one per group.

    `scales` are bytes and `biases` None in the float4 forms.
    """

    codes: Bytes
    scales: npt.NDArray[np.float32 | np.float16 | np.uint16 | np.uint8]
    biases: Stored | None


def encode(raw: Bytes, tensor: TensorInfo, form: Form, number: Number, errors: Errors) -> Encoded:
    """Blocks u8 [n, type_size]; adds to `errors`. Raises MalformedFile, Unsupported."""
    kind = BLOCK_TYPES[tensor.type_name]
    assert isinstance(kind, CodedBlockType)
    if isinstance(kind, Fp4BlockType):
        return _float4(raw, kind, tensor, errors)
    if form.kind == "re-encoded":
        return Encoded(*re_encode(raw, kind, tensor, form, number, errors))
    parts = [
        _affine(raw[at], kind, tensor, form, number, errors)
        for at in slices(len(raw), SLICE_WEIGHTS // kind.block_size)
    ]
    if len(parts) == 1:
        return parts[0]
    return Encoded(
        np.concatenate([each.codes for each in parts]),
        np.concatenate([each.scales for each in parts]),
        np.concatenate([each.biases for each in parts if each.biases is not None]),
    )


def _affine(
    raw: Bytes, kind: CodedBlockType, tensor: TensorInfo, form: Form, number: Number, errors: Errors
) -> Encoded:
    scale, bias = _product_line(kind, raw) if isinstance(kind, Q3_K) else _line(kind, raw)
    scales, kept_scale = rounded(scale, tensor.name, number)
    biases, kept_bias = rounded(bias, tensor.name, number)
    lost = kept_scale - scale, kept_bias - bias
    top, is_rounded = (1 << form.bits) - 1, bool(lost[0].any() or lost[1].any())
    if form.bits == 4:
        packed = kind.packed(raw)
        moments = moments_of_nibbles(packed, form.group) if is_rounded else None
    else:
        codes = _product_codes(kind, raw) if isinstance(kind, Q3_K) else kind.level_codes(raw)
        moments = moments_of(codes, form.group, top) if is_rounded else None
        packed = pack_codes(codes, form.bits)
    _measure(*lost, moments, top, errors)
    errors.count += scale.size * form.group
    return Encoded(packed, scales, biases)


def _measure(
    scale: Floats, bias: Floats, moments: Moments | None, top: int, errors: Errors
) -> None:
    """What rounding did: an error linear in the code, so the codes' moments give its mean square.

    The largest is that of the first or the last code, whether or not a group has them.
    """
    if moments is None:
        return
    largest = max(float(np.abs(scale * code + bias).max()) for code in (0, top))
    s, b = scale.astype(np.float64), bias.astype(np.float64)
    total = s * s * moments.squares + 2 * s * b * moments.sums + moments.size * b * b
    errors.add_moments(largest, max(float(total.sum()), 0.0), 0)


def _line(kind: CodedBlockType, raw: Bytes) -> tuple[Floats, Floats]:
    """Scale and offset of each sub-block: a weight is `scale*code + offset`."""
    scale, minimum = kind.scales(raw)
    offset = scale * np.float32(-kind.zero)
    if minimum is not None:
        offset = offset - minimum
    return scale.reshape(-1), offset.reshape(-1)


def _product_line(kind: Q3_K, raw: Bytes) -> tuple[Floats, Floats]:
    """A weight is d·(s·q) with s·q from -124 to 128, so one d for 128 weights is exact."""
    scale = -np.repeat(kind.super_scale(raw), 2)
    return scale, scale * np.float32(-128)


def _product_codes(kind: Q3_K, raw: Bytes) -> Bytes:
    """Counted down from 128, under a negated scale, so that all of them fit a byte.

    128 - s·(u - 4) may be computed in bytes: what overflows on the way comes back.
    """
    steps = kind.scale_steps(raw).view(np.uint8).reshape(-1)
    codes = np.repeat(np.uint8(128) + np.uint8(4) * steps, kind.sub)
    codes -= kind.level_codes(raw).reshape(-1) * np.repeat(steps, kind.sub)
    return codes


def _float4(raw: Bytes, kind: Fp4BlockType, tensor: TensorInfo, errors: Errors) -> Encoded:
    """The sign of an E4M3 scale is ignored by ggml, and its NaN is 0 there; not so in MLX."""
    errors.add_moments(0.0, 0.0, len(raw) * kind.block_size)
    scales = kind.scale_bytes(raw).reshape(-1)
    is_nv = kind.sub == 16
    if is_nv:
        scales = np.where(scales == _NV_NAN, np.uint8(0), scales & np.uint8(~_SIGN_BIT & 0xFF))
    if (scales == (_NV_NAN if is_nv else _MX_NAN)).any():
        raise MalformedFile(f"tensor {tensor.name!r} holds a scale that is not a number")
    return Encoded(kind.packed_floats(raw), np.ascontiguousarray(scales), None)
