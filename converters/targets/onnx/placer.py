"""Hands out the ranges of `weights.bin`, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator

from msgspec.structs import replace

from converters.architectures.experts import Experts
from converters.architectures.parts import Linear, Norm
from converters.artifact import CodedTable
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.onnx.experts import Stack, plan_stacks
from converters.targets.onnx.layout import (
    ALIGNMENT_BYTES,
    FLOAT_TYPES,
    HALF_FORMS,
    PAGE_BYTES,
    PAGED_BYTES,
    Form,
    Layout,
    Matrix,
    Source,
    Vector,
    form_of,
)
from converters.targets.onnx.pieces import ItemType, Number, Piece

# A model that claims more than this is refused before anything is computed from it.
MAX_WEIGHTS_BYTES = 1 << 44


class Placer:
    """Hands out aligned ranges, in the order in which it is asked.

    `keeps_halves`: F16 and BF16 matrices stay that, to be widened as they are used.
    """

    def __init__(
        self,
        tensors: dict[str, TensorInfo],
        *,
        precise: bool,
        number: Number,
        keeps_halves: bool = False,
    ) -> None:
        self.tensors = tensors
        self.matrices: dict[str, Matrix] = {}
        self._vectors: dict[str, Vector] = {}
        self._stacks: dict[str, Stack] = {}
        self._end = 0
        self._is_precise = precise
        self._number: Number = number
        self._keeps_halves = keeps_halves

    def vector(self, *names: str, length: int = 0, number: Number | None = None) -> str:
        """Places the vectors as one, once; gives its name. `length` keeps only the first numbers.

        `number` is what they are written in, where it is not what all others are.
        """
        name = "+".join(names)
        if name not in self._vectors:
            sources = tuple(self._vector_source(part, length) for part in names)
            shape = (sum(source.rows for source in sources),)
            piece = self._piece(name, number or self._number, shape)
            self._vectors[name] = Vector(sources=sources, piece=piece)
        return name

    def norm(self, norm: Norm) -> None:
        self.vector(norm.weight)
        if norm.bias:
            self.vector(norm.bias)

    def array(self, name: str, shape: tuple[int, ...], number: Number | None = None) -> None:
        """A tensor of any type as plain numbers in a shape of as many."""
        source = Source(tensor=self.tensors[name], rows=math.prod(shape))
        if source.rows != source.tensor.elements:
            raise Unsupported(f"tensor {name!r} does not have the shape {list(shape)}")
        form_of(source.tensor, precise=False)
        piece = self._piece(name, number or self._number, shape)
        self._vectors[name] = Vector(sources=(source,), piece=piece)

    def experts(self, index: int, experts: Experts) -> None:
        planned = plan_stacks(
            index,
            experts,
            self.tensors,
            self._piece,
            precise=self._is_precise,
            number=self._number,
        )
        self._stacks.update({stack.name: stack for stack in planned})

    def matrices_of(self, linears: Iterator[Linear]) -> None:
        for linear in linears:
            self.matrix(linear.stem, [linear])

    def _vector_source(self, name: str, length: int) -> Source:
        tensor = self.tensors[name]
        if tensor.type_name not in FLOAT_TYPES:
            raise Unsupported(f"tensor {name!r}: a vector of type {tensor.type_name}")
        return Source(tensor=tensor, rows=length or tensor.elements)

    def together(self, name: str, linears: list[Linear]) -> None:
        """As one matrix when the forms agree and all or none have a bias, else each for itself."""
        forms = {self._form(linear) for linear in linears}
        if len(forms) == 1 and len({bool(linear.bias) for linear in linears}) == 1:
            self.matrix(name, linears)
            return
        for linear in linears:
            self.matrix(linear.stem, [linear])

    def matrix(
        self, name: str, linears: list[Linear], *, rows: int = 0, form: Form | None = None
    ) -> Matrix:
        """`rows` keeps only the first of a single linear's rows; a given form leaves biases out."""
        sources = tuple(
            Source(tensor=self.tensors[linear.weight], rows=rows or linear.rows)
            for linear in linears
        )
        biases = [linear.bias for linear in linears if linear.bias and form is None]
        number = self._number if form is None else "float32"
        form = form or self._form(linears[0])
        shape = (sum(source.rows for source in sources), linears[0].columns)
        self.matrices[name] = matrix = Matrix(
            name=name,
            sources=sources,
            rows=shape[0],
            columns=shape[1],
            form=form,
            pieces={
                role: self._piece(f"{name}.{role}", item, piece_shape)
                for role, (item, piece_shape) in _pieces(form, *shape, number).items()
            },
            bias=self.vector(*biases, length=rows) if biases else "",
        )
        return matrix

    def _form(self, linear: Linear) -> Form:
        tensor = self.tensors[linear.weight]
        if self._keeps_halves and tensor.type_name in HALF_FORMS:
            return HALF_FORMS[tensor.type_name]
        return form_of(tensor, precise=self._is_precise, number=self._number)

    def _piece(self, name: str, item: ItemType, shape: tuple[int, ...]) -> Piece:
        piece = Piece(name=name, item=item, shape=shape, offset=0)
        step = PAGE_BYTES if piece.nbytes >= PAGED_BYTES else ALIGNMENT_BYTES
        piece = replace(piece, offset=-(-self._end // step) * step)
        self._end = piece.offset + piece.nbytes
        if self._end > MAX_WEIGHTS_BYTES:
            raise Unsupported(f"the weights would be larger than {MAX_WEIGHTS_BYTES} bytes")
        return piece

    def finish(self, embedding: CodedTable) -> Layout:
        self._place_zeros()
        return Layout(
            matrices=self.matrices,
            vectors=self._vectors,
            stacks=self._stacks,
            embedding=embedding,
            weights_bytes=self._end,
            is_precise=self._is_precise,
            number=self._number,
        )

    def _place_zeros(self) -> None:
        """The low halves' zero points are all 0: one range, as long as the longest, for all."""
        split = [matrix for matrix in self.matrices.values() if matrix.form.kind == "split"]
        shapes = [(m.rows, -(-(m.columns // m.form.block) // 2)) for m in split]
        if not split:
            return
        shared = self._piece("zeros", "uint8", (max(rows * width for rows, width in shapes),))
        for matrix, shape in zip(split, shapes, strict=True):
            zeros = replace(shared, name=f"{matrix.name}.zeros", shape=shape)
            pieces = {**matrix.pieces, "zeros": zeros}
            self.matrices[matrix.name] = replace(matrix, pieces=pieces)


def _pieces(
    form: Form, rows: int, columns: int, number: Number
) -> dict[str, tuple[ItemType, tuple[int, ...]]]:
    """Item type and shape of each array of a matrix, by role; `Matrix` says what the roles are."""
    if form.kind == "float32":
        return {"values": ("float32", (rows, columns))}
    if form.kind == "float16":
        return {"values": ("float16", (rows, columns))}
    if form.kind == "bfloat16":
        return {"values": ("bfloat16", (rows, columns))}
    blocks = columns // form.block
    pieces: dict[str, tuple[ItemType, tuple[int, ...]]] = {"scales": (number, (rows, blocks))}
    if form.kind == "codes":
        pieces["codes"] = ("uint8", (rows, blocks, form.block * form.bits // 8))
    else:
        pieces["high"] = pieces["low"] = ("uint8", (rows, blocks, form.block // 2))
        pieces["high_scales"] = pieces["scales"]
    if form.is_corrected:
        pieces["correction"] = (number, (blocks, rows))
    return pieces
