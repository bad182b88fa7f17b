"""Where every number of `weights.bin` will lie: pure data from a model's shape and tensor table.

Reads no weights and imports no onnx; the graph and the weights writer both follow it and decide
nothing. Query, key and value of one form are written as one matrix, rows below rows: attention
takes them packed. Gate and up stay apart: cutting their product in two costs what the larger
product gains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, cast

import msgspec
from msgspec.structs import replace

from converters.architectures.experts import Experts
from converters.architectures.mixers import (
    Attention,
    GatedDeltaNet,
    LatentAttention,
    ShortConvolution,
)
from converters.architectures.model import BlockShape, Encoder, ModelShape
from converters.architectures.parts import Linear, Norm
from converters.artifact import CodedTable
from converters.blocks import BLOCK_TYPES
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.onnx.experts import Stack, plan_stacks
from converters.targets.onnx.pieces import NUMBER_BITS, ItemType, LowRank, Number, Piece

PAGE_BYTES = 4096
ALIGNMENT_BYTES = 64
# From this size on a piece begins a page: the runtime maps it, and GPUs read it without a copy.
PAGED_BYTES = 1 << 20
FLOAT_TYPES = ("F32", "F16", "BF16")
# A model that claims more than this is refused before anything is computed from it.
MAX_WEIGHTS_BYTES = 1 << 44


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How a matrix is written.

    float32 and float16: plain. codes: `bits` wide in blocks of `block` along a row, with scales in
    the layout's number. split: 8-bit codes as a high and a low 4-bit matrix, which has an exact fp32
    product on every CPU. `is_corrected`: with one fp32 number per block for the GGML minimum.
    """

    kind: Literal["float32", "float16", "codes", "split"]
    bits: int = 32
    block: int = 0
    is_corrected: bool = False


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
    adapter adds, by the matrix's name; its bytes are not part of the weights.
    """

    matrices: dict[str, Matrix]
    vectors: dict[str, Vector]
    stacks: dict[str, Stack]
    embedding: CodedTable
    weights_bytes: int
    is_precise: bool
    number: Number = "float32"
    low_rank: dict[str, LowRank] = {}

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


def plan_layout(
    model: ModelShape,
    tensors: dict[str, TensorInfo],
    *,
    precise: bool = False,
    number: Number = "float32",
) -> Layout:
    """Places every tensor that the model uses. Raises Unsupported for a type it cannot express."""
    placer = _Placer(tensors, precise=precise, number=number)
    for index, block in enumerate(model.blocks):
        _place_block(placer, index, block)
    if model.output_norm:
        placer.norm(model.output_norm)
    if model.output:
        placer.matrix("output", [model.output], rows=model.vocabulary)
    if model.encoder:
        _place_encoder(placer, model.encoder, model.embedding_length)
    return placer.finish(_place_embedding(placer, model))


def _place_block(placer: _Placer, index: int, block: BlockShape) -> None:
    for norm in block.norms():
        placer.norm(norm)
    match block.mixer:
        case Attention():
            _place_attention(placer, index, block.mixer)
        case LatentAttention():
            _place_latent_attention(placer, block.mixer)
        case GatedDeltaNet() | ShortConvolution():
            _place_recurrent(placer, block.mixer)
    placer.matrices_of(block.feed_forward.linears())
    if isinstance(block.feed_forward, Experts):
        if block.feed_forward.selection_bias:
            placer.vector(block.feed_forward.selection_bias)
        placer.experts(index, block.feed_forward)


def _place_recurrent(placer: _Placer, mixer: GatedDeltaNet | ShortConvolution) -> None:
    """What a state goes through stays fp32: it is summed up over a whole row."""
    kernel = (mixer.channels, 1, mixer.length)
    placer.array(mixer.kernel, kernel, number="float32")
    if isinstance(mixer, GatedDeltaNet):
        for name in (mixer.norm.weight, mixer.decay, mixer.time_bias):
            placer.vector(name, number="float32")
    placer.matrices_of(mixer.linears())


def _place_attention(placer: _Placer, index: int, attention: Attention) -> None:
    for norm in (attention.query_norm, attention.key_norm):
        if norm:
            placer.norm(norm)
    if attention.sinks:
        placer.vector(attention.sinks)
    is_packed = not (attention.query_norm or attention.has_output_gate)
    if attention.query and attention.key and attention.value and is_packed:
        projections = [attention.query, attention.key, attention.value]
        placer.together(f"blk.{index}.attn_qkv", projections)
        placer.matrices_of(each for each in (attention.gate, attention.output) if each)
    else:
        placer.matrices_of(attention.linears())


def _place_latent_attention(placer: _Placer, attention: LatentAttention) -> None:
    for norm in (attention.query_norm, attention.key_value_norm):
        if norm:
            placer.norm(norm)
    joint = attention.nope_size + attention.value_size
    for name in attention.stacks():
        shape = placer.tensors[name].shape
        is_joint = name == attention.key_value_up
        placer.array(name, (attention.heads, joint, attention.latent) if is_joint else shape)
    placer.matrices_of(attention.linears())


def _place_encoder(placer: _Placer, encoder: Encoder, width: int) -> None:
    if encoder.positions:
        placer.array(encoder.positions, placer.tensors[encoder.positions].shape)
    if encoder.token_types:
        placer.vector(encoder.token_types, length=width)
    if encoder.embedding_norm:
        placer.norm(encoder.embedding_norm)
    placer.matrices_of(iter(encoder.projections))


def _place_embedding(placer: _Placer, model: ModelShape) -> CodedTable:
    """A tied table is the head's own bytes, unless the head is split into two matrices."""
    head = placer.matrices.get("output")
    if head and model.is_tied and head.form.kind != "split" and head.form.bits != 2:
        return _table(head)
    form = table_form_of(placer.tensors[model.embedding.weight])
    return _table(placer.matrix("embedding", [model.embedding], rows=model.vocabulary, form=form))


def _table(matrix: Matrix) -> CodedTable:
    pieces, form = matrix.pieces, matrix.form
    if form.kind in NUMBER_BITS:
        offset = pieces["values"].offset
        return CodedTable(
            rows=matrix.rows, columns=matrix.columns, bits=form.bits, codes_offset=offset
        )
    correction = pieces.get("correction")
    return CodedTable(
        rows=matrix.rows,
        columns=matrix.columns,
        bits=form.bits,
        block=form.block,
        codes_offset=pieces["codes"].offset,
        scales_offset=pieces["scales"].offset,
        correction_offset=correction.offset if correction else -1,
        number_bits=NUMBER_BITS[cast(Number, pieces["scales"].item)],
    )


class _Placer:
    """Hands out aligned ranges, in the order in which it is asked."""

    def __init__(self, tensors: dict[str, TensorInfo], *, precise: bool, number: Number) -> None:
        self.tensors = tensors
        self.matrices: dict[str, Matrix] = {}
        self._vectors: dict[str, Vector] = {}
        self._stacks: dict[str, Stack] = {}
        self._end = 0
        self._is_precise = precise
        self._number: Number = number

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
