"""How a block's expert matrices are laid out: two stacks, gate and up interleaved, and down.

The CPU operators ask for one width of codes and one block for both stacks. Types without mins keep
their codes; a type with mins becomes 8-bit codes with integer zero points, the one place where a
quantised weight is re-encoded. CUDA's operator knows no blocks of 16: there two of them become one,
re-encoded too. Experts in floats, and all of a precise artifact, stay floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from converters.architectures.experts import ExpertMatrix, Experts
from converters.blocks import BLOCK_TYPES
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.onnx.pieces import ItemType, Number, Piece

PlacePiece = Callable[[str, ItemType, tuple[int, ...]], Piece]
# Blocks that the operator has fast kernels for; wider ones repeat their scale.
MAX_BLOCK = 128
LEAST_CUDA_BLOCK = 32


class StackForm(msgspec.Struct, frozen=True, kw_only=True):
    """Plain numbers, or codes of 4 or 8 bits in blocks of `block` with scales (and zero points)."""

    kind: Literal["floats", "codes"]
    bits: int = 32
    block: int = 0
    has_zeros: bool = False


class ExpertSource(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` rows of each expert, from its row `first` on; the tensor has `stride` rows for each."""

    tensor: TensorInfo
    rows: int
    stride: int
    first: int = 0


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """[experts, rows, columns]; rows of several sources alternate: g0, u0, g1, u1 …

    `pieces` by role: `values`, or `codes`, `scales` and `zeros`; `bias` [experts, rows].
    """

    name: str
    sources: tuple[ExpertSource, ...]
    biases: tuple[ExpertSource, ...]
    experts: int
    rows: int
    columns: int
    form: StackForm
    pieces: dict[str, Piece]


def stack_names(index: int) -> tuple[str, str]:
    return f"blk.{index}.ffn_gate_up_exps", f"blk.{index}.ffn_down_exps"


def plan_stacks(
    index: int,
    experts: Experts,
    tensors: dict[str, TensorInfo],
    place: PlacePiece,
    *,
    precise: bool,
    number: Number,
) -> list[Stack]:
    """Both stacks of a block. Raises Unsupported for what the operators cannot express."""
    found = [tensors[matrix.weight] for matrix in experts.matrices()]
    form = stack_form(found, precise=precise, number=number)
    parts = [list(_gate_up(experts, tensors)), [(experts.down, 0, experts.down.rows)]]
    return [
        _stack(name, experts.count, part, form, tensors, place, number)
        for name, part in zip(stack_names(index), parts, strict=True)
    ]


def _gate_up(
    experts: Experts, tensors: dict[str, TensorInfo]
) -> Iterator[tuple[ExpertMatrix, int, int]]:
    """(matrix, first row, rows) of gate, then of up; of up alone where there is no gate.

    Twice for relu squared: the operator knows it only as a product of two.
    """
    if experts.activation != "swiglu":
        yield experts.up, 0, experts.up.rows
        if experts.activation == "relu_squared":  # a gate like any other to the operator
            yield experts.up, 0, experts.up.rows
    elif experts.gate:
        yield experts.gate, 0, experts.gate.rows
        yield experts.up, 0, experts.up.rows
    else:
        half = experts.up.rows // 2
        yield experts.up, 0, half
        yield experts.up, half, half


def stack_form(
    tensors: list[TensorInfo], *, precise: bool, number: Number = "float32"
) -> StackForm:
    """One form for all of a block's experts. Raises Unsupported for a type without codes."""
    kinds = {tensor.type_name: BLOCK_TYPES.get(tensor.type_name) for tensor in tensors}
    for tensor in tensors:
        if kinds[tensor.type_name] is None:
            raise Unsupported(
                f"tensor {tensor.name!r}: type {tensor.type_name} is not supported yet"
            )
    forms = [kind.form for kind in kinds.values() if kind]
    coded = [form for form in forms if form is not None]
    if precise or len(coded) < len(forms):
        return StackForm(kind="floats")
    has_zeros = any(form.has_correction for form in coded)
    is_narrow = not has_zeros and all(form.bits == 4 for form in coded)
    block = min(MAX_BLOCK, *(form.block for form in coded))
    if number == "float16" and block < LEAST_CUDA_BLOCK:
        return StackForm(kind="codes", bits=8, block=LEAST_CUDA_BLOCK, has_zeros=True)
    return StackForm(kind="codes", bits=4 if is_narrow else 8, block=block, has_zeros=has_zeros)


def _stack(
    name: str,
    count: int,
    parts: list[tuple[ExpertMatrix, int, int]],
    form: StackForm,
    tensors: dict[str, TensorInfo],
    place: PlacePiece,
    number: Number,
) -> Stack:
    rows, columns = sum(part[2] for part in parts), parts[0][0].columns
    if form.block and columns % form.block:
        raise Unsupported(f"tensor {parts[0][0].weight!r}: {columns} columns in a mixed block")
    shapes = _shapes(form, (count, rows), columns, number)
    if parts[0][0].bias:
        shapes["bias"] = (number, (count, rows))
    return Stack(
        name=name,
        sources=_sources(parts, tensors, "weight"),
        biases=_sources(parts, tensors, "bias"),
        experts=count,
        rows=rows,
        columns=columns,
        form=form,
        pieces={
            role: place(f"{name}.{role}", item, shape) for role, (item, shape) in shapes.items()
        },
    )


def _sources(
    parts: list[tuple[ExpertMatrix, int, int]], tensors: dict[str, TensorInfo], role: str
) -> tuple[ExpertSource, ...]:
    return tuple(
        ExpertSource(tensor=tensors[name], rows=rows, stride=matrix.rows, first=first)
        for matrix, first, rows in parts
        if (name := getattr(matrix, role))
    )


def _shapes(
    form: StackForm, rows: tuple[int, int], columns: int, number: Number
) -> dict[str, tuple[ItemType, tuple[int, ...]]]:
    if form.kind == "floats":
        return {"values": (number, (*rows, columns))}
    scales = (*rows, columns // form.block)
    shapes: dict[str, tuple[ItemType, tuple[int, ...]]] = {
        "codes": ("uint8", (*rows, columns * form.bits // 8)),
        "scales": (number, scales),
    }
    if form.has_zeros:
        shapes["zeros"] = ("uint8", scales)
    return shapes
