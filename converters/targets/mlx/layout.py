"""Where every number of `model.safetensors` will lie: pure data from a model's shape and tensors.

Reads no weights. Every tensor that the architecture uses gets a place here, or the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.parts import FeedForward, Linear, Norm
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.mlx.forms import FLOAT_TYPES, Form, Number, form_of
from converters.targets.mlx.models.family import Family, attention_of, context_length
from converters.targets.mlx.safetensors import Array, place

# A model that claims more than this is refused before anything is computed from it.
MAX_WEIGHTS_BYTES = 1 << 44


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """The first `rows` rows of a tensor at the module `path`; those of all experts in a stack.

    `arrays` by role: `weight`, and for codes `scales` and (affine) `biases`. `head_size` is not 0
    where the rows of each head go from neighbouring pairs to two halves.
    """

    path: str
    tensor: TensorInfo
    rows: int
    columns: int
    form: Form
    arrays: dict[str, Array]
    head_size: int = 0


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """A vector of the file plus `shift`, or zeros where `tensor` is None."""

    array: Array
    length: int
    tensor: TensorInfo | None
    head_size: int = 0
    shift: float = 0.0


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """`header` is how the file begins; `weights_bytes` is all of it.

    `context_length` is how many ids the module takes as the file means them.
    """

    matrices: tuple[Matrix, ...]
    vectors: tuple[Vector, ...]
    number: Number
    header: bytes
    weights_bytes: int
    context_length: int

    def quantization(self) -> dict[str, object]:
        """mlx-lm's own key: a default that no module needs, then each coded module by its path."""
        entries: dict[str, object] = {}
        for matrix in self.matrices:
            form = matrix.form
            if form.mode:
                entries[matrix.path] = {
                    "group_size": form.group,
                    "bits": form.bits,
                    "mode": form.mode,
                }
        return {"group_size": 32, "bits": 8, "mode": "affine", **entries} if entries else {}


def plan_layout(model: ModelShape, tensors: dict[str, TensorInfo], family: Family) -> Layout:
    """Raises Unsupported for a tensor that has no place in the family or no form."""
    placer = _Placer(model, tensors, family)
    names = family.names
    placer.matrix(names.embedding, "", model.embedding, rows=model.vocabulary)
    placer.norm(names.output_norm, model.output_norm)
    if not model.is_tied and model.output is not None:
        placer.matrix(names.output, "", model.output, rows=model.vocabulary)
    for index, block in enumerate(model.blocks):
        stem = names.block.format(index)
        _place_attention(placer, stem, attention_of(block), family)
        if isinstance(block.feed_forward, FeedForward):
            _place_feed_forward(placer, stem, block.feed_forward, family)
        else:
            _place_experts(placer, stem, block.feed_forward, family)
        _place_norms(placer, stem, block, family)
    return placer.finish()


def _place_attention(placer: _Placer, stem: str, attention: Attention, family: Family) -> None:
    names = family.names
    turned = attention.head_size if _is_turned(attention, family) else 0
    for role, linear, head_size in (
        ("query", attention.query, turned),
        ("key", attention.key, turned),
        ("value", attention.value, 0),
        ("fused", attention.fused, 0),
        ("attention_output", attention.output, 0),
    ):
        if linear is not None:
            path = f"{stem}.{getattr(names, role)}"
            placer.matrix(path, role, linear, head_size=head_size)
    placer.norm(f"{stem}.{names.query_norm}", attention.query_norm)
    placer.norm(f"{stem}.{names.key_norm}", attention.key_norm)


def _is_turned(attention: Attention, family: Family) -> bool:
    is_turned = attention.interleaved and bool(attention.rope) and not family.keeps_pairs
    if is_turned and (attention.fused or attention.query_norm):
        raise Unsupported(f"mlx-lm's {family.model_type} model rotates halves, this file pairs")
    return is_turned


def _place_feed_forward(
    placer: _Placer, stem: str, feed_forward: FeedForward, family: Family
) -> None:
    names = family.names
    up = "fused_up" if feed_forward.is_up_fused else "up"
    roles = (("gate", feed_forward.gate), (up, feed_forward.up), ("down", feed_forward.down))
    for role, linear in roles:
        if linear is not None:
            placer.matrix(f"{stem}.{getattr(names, role)}", role, linear)


def _place_experts(placer: _Placer, stem: str, experts: Experts, family: Family) -> None:
    names = family.names
    placer.matrix(f"{stem}.{names.router}", "", experts.router)
    roles = (("gate", experts.gate), ("up", experts.up), ("down", experts.down))
    for role, matrix in roles:
        if matrix is not None:
            path = f"{stem}.{names.experts}.{role}_proj"
            stack = Linear(
                weight=matrix.weight, rows=experts.count * matrix.rows, columns=matrix.columns
            )
            placer.matrix(path, "", stack, count=experts.count)
    if experts.shared and experts.shared_gate:
        for role in ("gate", "up", "down"):
            linear = getattr(experts.shared, role)
            placer.matrix(f"{stem}.{names.shared}.{role}_proj", "", linear)
        placer.matrix(f"{stem}.{names.shared_gate}", "", experts.shared_gate)


def _place_norms(placer: _Placer, stem: str, block: BlockShape, family: Family) -> None:
    names = family.names
    for name, norm in (
        (names.attention_norm, block.attention_norm),
        (names.post_attention_norm, block.post_attention_norm),
        (names.feed_forward_norm, block.feed_forward_norm),
        (names.post_feed_forward_norm, block.post_feed_forward_norm),
    ):
        if name:
            placer.norm(f"{stem}.{name}", norm)


class _Placer:
    """Collects what is asked for; `finish` sees to it that nothing is left."""

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
        head_size: int = 0,
        count: int = 0,
    ) -> None:
        """With its bias, or zeros where the module must have one; `count` of them in a stack."""
        tensor = self._tensors[linear.weight]
        form, rows = form_of(tensor), rows or linear.rows
        self._matrices.append(
            Matrix(
                path=path,
                tensor=tensor,
                rows=rows,
                columns=linear.columns,
                form=form,
                arrays=_arrays(path, form, _leading(rows, count), linear.columns, self._number),
                head_size=head_size,
            )
        )
        if linear.bias or role in self._biased:
            self._vector(f"{path}.bias", linear.bias, rows, head_size=head_size)

    def norm(self, path: str, norm: Norm | None) -> None:
        if norm is None:
            return
        length = self._tensors[norm.weight].elements
        self._vector(f"{path}.weight", norm.weight, length, shift=self._family.norm_shift)
        if norm.bias or (norm.is_centered and "norm" in self._biased):
            self._vector(f"{path}.bias", norm.bias, length)

    def _vector(
        self, path: str, name: str, length: int, *, head_size: int = 0, shift: float = 0.0
    ) -> None:
        tensor = self._tensors[name] if name else None
        if tensor is not None and tensor.type_name not in FLOAT_TYPES:
            raise Unsupported(f"tensor {name!r}: a vector of type {tensor.type_name}")
        array = Array(name=path, item=self._number, shape=(length,))
        self._vectors.append(
            Vector(array=array, length=length, tensor=tensor, head_size=head_size, shift=shift)
        )

    def finish(self) -> Layout:
        self._check_all_placed()
        arrays = [vector.array for vector in self._vectors]
        arrays += [array for matrix in self._matrices for array in matrix.arrays.values()]
        size = sum(array.nbytes for array in arrays)
        if size > MAX_WEIGHTS_BYTES:
            raise Unsupported(f"the weights would be larger than {MAX_WEIGHTS_BYTES} bytes")
        placed, header = place(arrays)
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


def _leading(rows: int, count: int) -> tuple[int, ...]:
    """An array's shape but for its columns."""
    return (count, rows // count) if count else (rows,)


def _arrays(
    path: str, form: Form, leading: tuple[int, ...], columns: int, number: Number
) -> dict[str, Array]:
    if not form.mode:
        return {"weight": Array(name=f"{path}.weight", item=number, shape=(*leading, columns))}
    groups = (*leading, columns // form.group)
    words = (*leading, columns * form.bits // 32)
    arrays = {"weight": Array(name=f"{path}.weight", item="U32", shape=words)}
    if form.mode != "affine":
        return arrays | {"scales": Array(name=f"{path}.scales", item="U8", shape=groups)}
    return arrays | {
        role: Array(name=f"{path}.{role}", item=number, shape=groups)
        for role in ("scales", "biases")
    }
