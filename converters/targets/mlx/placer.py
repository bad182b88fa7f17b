"""Gives each tensor that an architecture uses its arrays, and sees to it that none is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec.structs import replace

from converters.architectures.model import ModelShape
from converters.architectures.parts import Linear, Norm
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.mlx.forms import DENSE, FLOAT_TYPES, Form, Number, form_of
from converters.targets.mlx.layout import Layout, Matrix, Run, Vector
from converters.targets.mlx.models.family import Family, cached_numbers, context_length
from converters.targets.mlx.safetensors import Array, place

# A model that claims more than this is refused before anything is computed from it.
MAX_WEIGHTS_BYTES = 1 << 44
Runs = tuple[Run, ...]


class Placer:
    """Collects what is asked for; `finish` lays it out."""

    def __init__(self, model: ModelShape, tensors: dict[str, TensorInfo], family: Family) -> None:
        self._tensors = tensors
        self._family = family
        self._model = model
        self._biased = family.biases(model)
        self._number: Number = _number_of(model, tensors, family)
        self._matrices: list[Matrix] = []
        self._vectors: list[Vector] = []

    def matrix(
        self,
        path: str,
        role: str,
        linear: Linear,
        *,
        rows: int = 0,
        runs: Runs = (),
        head_size: int = 0,
        column_order: tuple[int, ...] = (),
        count: int = 0,
        is_dense: bool = False,
    ) -> None:
        """With its bias, or zeros where the module must have one; `count` of them in a stack.

        `is_dense`: the module takes no codes.
        """
        rows = rows or linear.rows
        self.stack(
            path,
            linear,
            (count, rows // count) if count else (rows,),
            runs=runs,
            head_size=head_size,
            column_order=column_order,
            is_dense=is_dense,
        )
        if linear.bias or role in self._biased:
            self.vector(f"{path}.bias", linear.bias, rows, head_size=head_size, runs=runs)

    def stack(
        self,
        path: str,
        linear: Linear,
        leading: tuple[int, ...],
        *,
        runs: Runs = (),
        head_size: int = 0,
        column_order: tuple[int, ...] = (),
        is_dense: bool = False,
        turned_columns: int = 0,
    ) -> None:
        """The arrays of shape [*leading, columns]; `turned_columns` theirs where blocks are turned."""
        tensor = self._tensors[linear.weight]
        form = DENSE if is_dense or turned_columns else form_of(tensor)
        columns = turned_columns or linear.columns
        rows = 1
        for dimension in leading:
            rows *= dimension
        if column_order and (columns // len(column_order)) % max(form.group, 1):
            raise Unsupported(f"tensor {linear.weight!r}: groups of {form.group} cross its heads")
        self._matrices.append(
            Matrix(
                path=path,
                tensor=tensor,
                rows=rows,
                columns=linear.columns,
                form=form,
                arrays=arrays_of(path, form, leading, columns, self._number),
                runs=runs or (Run(0, 0, rows),),
                head_size=head_size,
                column_order=column_order,
                is_transposed=bool(turned_columns),
            )
        )

    def joined(self, path: str, linears: Sequence[Linear]) -> None:
        """One matrix, rows below rows: dense where they have several forms. Biases have no place."""
        forms = {form_of(self._tensors[linear.weight]) for linear in linears}
        total, first = sum(linear.rows for linear in linears), 0
        for linear in linears:
            runs = (Run(0, first, linear.rows),)
            self.stack(path, linear, (total,), runs=runs, is_dense=len(forms) > 1)
            first += linear.rows

    def norm(self, path: str, norm: Norm | None) -> None:
        if norm is None:
            return
        length = self._tensors[norm.weight].elements
        self.vector(f"{path}.weight", norm.weight, length, shift=self._family.norm_shift)
        if norm.bias or (norm.is_centered and "norm" in self._biased):
            self.vector(f"{path}.bias", norm.bias, length)

    def vector(
        self,
        path: str,
        name: str,
        length: int,
        *,
        shape: tuple[int, ...] | None = None,
        runs: Runs = (),
        head_size: int = 0,
        shift: float = 0.0,
        function: Literal["", "log of negative"] = "",
        is_wide: bool = False,
    ) -> None:
        """`length` numbers of a float tensor, zeros where `name` is empty, plus `shift`.

        In fp32 if `is_wide`.
        """
        tensor = self._tensors[name] if name else None
        if tensor is not None and tensor.type_name not in FLOAT_TYPES:
            raise Unsupported(f"tensor {name!r}: a vector of type {tensor.type_name}")
        # What a function has made keeps its digits, as in mlx-lm.
        item = "F32" if function or is_wide else self._number
        array = Array(path, item, (length,) if shape is None else shape)
        self._vectors.append(
            Vector(
                array=array,
                length=length,
                tensor=tensor,
                runs=runs or (Run(0, 0, length),),
                head_size=head_size,
                shift=shift,
                function=function,
            )
        )

    def finish(self) -> Layout:
        self._check_all_placed()
        arrays = {vector.array.name: vector.array for vector in self._vectors}
        for matrix in self._matrices:
            arrays |= {array.name: array for array in matrix.arrays.values()}
        size = sum(array.nbytes for array in arrays.values())
        if size > MAX_WEIGHTS_BYTES:
            raise Unsupported(f"the weights would be larger than {MAX_WEIGHTS_BYTES} bytes")
        placed, header = place(arrays.values())
        return Layout(
            matrices=tuple(
                replace(matrix, arrays={r: placed[a.name] for r, a in matrix.arrays.items()})
                for matrix in self._matrices
            ),
            vectors=tuple(
                replace(vector, array=placed[vector.array.name]) for vector in self._vectors
            ),
            number=self._number,
            header=header,
            weights_bytes=len(header) + size,
            context_length=context_length(self._model, self._family),
            cached_numbers=cached_numbers(self._model, self._family),
        )

    def _check_all_placed(self) -> None:
        placed = {part.tensor.name for part in (*self._matrices, *self._vectors) if part.tensor}
        said = {recipe.factors for recipe in self._model.rope.values()}  # in the config
        said |= {recipe.long_factors for recipe in self._model.rope.values()}
        said.update(self._model.unused)
        if left := sorted(self._model.tensor_names() - placed - said):
            raise Unsupported(
                f"tensor {left[0]!r} has no place in mlx-lm's {self._family.model_type} model"
            )


def _number_of(model: ModelShape, tensors: dict[str, TensorInfo], family: Family) -> Number:
    """The family's type; a model whose matrices are all F32 keeps them exact."""
    types = {tensors[linear.weight].type_name for linear in _linears(model)}
    return "F32" if types == {"F32"} else family.number


def _linears(model: ModelShape) -> Iterator[Linear]:
    yield from (model.embedding, model.output or model.embedding)
    for block in model.blocks:
        yield from block.linears()


def arrays_of(
    path: str, form: Form, leading: tuple[int, ...], columns: int, number: Number
) -> dict[str, Array]:
    if not form.mode:
        return {"weight": Array(f"{path}.weight", number, (*leading, columns))}
    groups = (*leading, columns // form.group)
    words = (*leading, columns * form.bits // 32)
    arrays = {"weight": Array(f"{path}.weight", "U32", words)}
    if form.mode != "affine":
        return arrays | {"scales": Array(f"{path}.scales", "U8", groups)}
    return arrays | {role: Array(f"{path}.{role}", number, groups) for role in ("scales", "biases")}
