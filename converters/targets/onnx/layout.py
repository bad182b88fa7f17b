"""Where every number of `weights.bin` lies: pure data, which the graph and the weights writer follow.

Imports no onnx. `placement` makes it of a model's shape and tensor table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from converters.artifact import CodedTable
from converters.blocks import BLOCK_TYPES
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.onnx.experts import Stack
from converters.targets.onnx.pieces import NUMBER_BITS, LowRank, Number, Piece

PAGE_BYTES = 4096
ALIGNMENT_BYTES = 64
# From this size on a piece begins a page: the runtime maps it, and GPUs read it without a copy.
PAGED_BYTES = 1 << 20
FLOAT_TYPES = ("F32", "F16", "BF16")
# Matrices that no graph multiplies with: rows are looked up in them.
EMBEDDING, PER_BLOCK = "embedding", "embedding_per_block"
LOOKED_UP = (EMBEDDING, PER_BLOCK)


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How a matrix is written.

    float32, float16 and bfloat16: plain; what is not in the layout's number is widened as it is used. codes: `bits` wide in blocks of `block` along a row, with scales in
    the layout's number. split: 8-bit codes as a high and a low 4-bit matrix, which has an exact fp32
    product on every CPU. `is_corrected`: with one fp32 number per block for the GGML minimum.
    """

    kind: Literal["float32", "float16", "bfloat16", "codes", "split"]
    bits: int = 32
    block: int = 0
    is_corrected: bool = False


HALF_FORMS = {
    "F16": Form(kind="float16", bits=16),
    "BF16": Form(kind="bfloat16", bits=16),
}


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The first `rows` rows of a matrix, or the first `rows` numbers of a vector."""

    tensor: TensorInfo
    rows: int


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """[rows, columns], the sources' rows one below the other.

    `pieces` by role: `values` for floats; `codes`, `scales`, `correction` [columns/block, rows];
    for split `high`, `low`, `scales`, `high_scales` (16 times the scales) and `zeros`.
    """

    name: str
    sources: tuple[Source, ...]
    rows: int
    columns: int
    form: Form
    pieces: dict[str, Piece]
    bias: str = ""


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the layout's type, or fp32, the sources' one after the other, in the shape of the piece."""

    sources: tuple[Source, ...]
    piece: Piece


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Matrices, vectors and stacks of experts by name; `embedding` is what ids are looked up in.

    `number` is the type of activations, scales and vectors: float16 for CUDA. `low_rank`: what an
    adapter adds, by the matrix's name; its bytes are not part of the weights. `per_block`: what blocks
    have of their own for each id.
    """

    matrices: dict[str, Matrix]
    vectors: dict[str, Vector]
    stacks: dict[str, Stack]
    embedding: CodedTable
    weights_bytes: int
    is_precise: bool
    number: Number = "float32"
    low_rank: dict[str, LowRank] = {}
    per_block: CodedTable | None = None

    def pieces(self) -> Iterator[Piece]:
        for matrix in self.matrices.values():
            yield from matrix.pieces.values()
        for vector in self.vectors.values():
            yield vector.piece
        for stack in self.stacks.values():
            yield from stack.pieces.values()


def form_of(tensor: TensorInfo, *, precise: bool, number: Number = "float32") -> Form:
    """The form of a tensor's product. Raises Unsupported for a type without one."""
    if tensor.type_name in FLOAT_TYPES:
        return Form(kind=number, bits=NUMBER_BITS[number])
    block_type = BLOCK_TYPES.get(tensor.type_name)
    if block_type is None or block_type.form is None:
        raise Unsupported(f"tensor {tensor.name!r}: type {tensor.type_name} is not supported yet")
    form = block_type.form
    kind = "split" if precise and form.bits == 8 else "codes"
    return Form(kind=kind, bits=form.bits, block=form.block, is_corrected=form.has_correction)


def table_form_of(tensor: TensorInfo) -> Form:
    """The form of a table whose rows are looked up: codes of 4 or 8 bits, or floats."""
    if tensor.type_name == "F16":
        return Form(kind="float16", bits=16)
    form = form_of(tensor, precise=False)
    return form if form.bits in (4, 8) else Form(kind="float32")
