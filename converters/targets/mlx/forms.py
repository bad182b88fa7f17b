"""How each GGML type is written for MLX: the affine groups, the native 4-bit floats, or dense.

An MLX affine weight is `scale*code + bias` with one scale and bias per group along a row, both in
the model's own 16-bit floats. Groups are 32, 64 or 128 long, so types with a scale for 16 weights
cannot keep their codes; they are re-encoded, and the error is measured.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from converters.blocks import BLOCK_TYPES
from converters.errors import Unsupported
from converters.gguf import TensorInfo

# Of a model's activations, norms, scales and biases: MLX computes in one type only.
Number = Literal["F16", "BF16", "F32"]
FLOAT_TYPES = ("F32", "F16", "BF16")


class Form(msgspec.Struct, frozen=True):
    """`kind` says how the codes come about.

    codes: the file's own, with its scales. products: codes times their small integer scale, exact
    under one scale for a whole super-block. re-encoded: the nearest codes for the dequantised
    weights. float4: codes and scale bytes as they are. dense: no codes, in the model's type.
    """

    kind: Literal["codes", "products", "re-encoded", "float4", "dense"]
    mode: Literal["affine", "mxfp4", "nvfp4", ""] = ""
    bits: int = 0
    group: int = 0

    def __str__(self) -> str:
        if not self.mode:
            return self.kind
        return f"{self.mode} {self.bits}-bit {self.kind} of {self.group}"


DENSE = Form("dense")


def _affine(kind: Literal["codes", "products", "re-encoded"], bits: int, group: int = 32) -> Form:
    return Form(kind, "affine", bits, group)


FORMS = {
    "Q4_0": _affine("codes", 4), "Q4_1": _affine("codes", 4), "Q4_K": _affine("codes", 4),
    "Q5_0": _affine("codes", 5), "Q5_1": _affine("codes", 5), "Q5_K": _affine("codes", 5),
    "Q8_0": _affine("codes", 8),
    "Q3_K": _affine("products", 8, 128),
    "Q6_K": _affine("re-encoded", 8), "Q2_K": _affine("re-encoded", 5),
    "IQ4_NL": _affine("codes", 8), "IQ4_XS": _affine("codes", 8),
    "IQ3_S": _affine("codes", 4), "IQ3_XXS": _affine("codes", 8),
    "IQ2_XXS": _affine("codes", 8), "IQ2_XS": _affine("re-encoded", 5),
    "IQ2_S": _affine("re-encoded", 5),
    "IQ1_S": _affine("codes", 2), "IQ1_M": _affine("re-encoded", 5),
    "TQ1_0": _affine("codes", 2, 128), "TQ2_0": _affine("codes", 2, 128),
    "MXFP4": Form("float4", "mxfp4", 4, 32), "NVFP4": Form("float4", "nvfp4", 4, 16),
}  # fmt: skip


def form_of(tensor: TensorInfo) -> Form:
    """Raises Unsupported for a type that MLX cannot be given."""
    if tensor.type_name in FLOAT_TYPES:
        return DENSE
    form = FORMS.get(tensor.type_name)
    if form is None or tensor.type_name not in BLOCK_TYPES:
        raise Unsupported(f"tensor {tensor.name!r}: type {tensor.type_name} is not supported yet")
    return form
