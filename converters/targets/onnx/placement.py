"""Gives every tensor of a model its place in `weights.bin`: pure data, from the header alone.

Reads no weights; the graph and the weights writer both follow the layout and decide
nothing. Query, key and value of one form are written as one matrix, rows below rows: attention
takes them packed. Gate and up stay apart: cutting their product in two costs what the larger
product gains.
"""

from __future__ import annotations

from typing import cast

from msgspec.structs import replace

from converters.architectures.altup import AltUp, BlockAltUp
from converters.architectures.experts import Experts
from converters.architectures.mixers import (
    Attention,
    GatedDeltaNet,
    LatentAttention,
    Mamba2,
    ShortConvolution,
)
from converters.architectures.model import BlockShape, Encoder, ModelShape
from converters.artifact import CodedTable
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.onnx.layout import EMBEDDING, PER_BLOCK, Layout, Matrix, table_form_of
from converters.targets.onnx.pieces import NUMBER_BITS, Number
from converters.targets.onnx.placer import Placer


def plan_layout(
    model: ModelShape,
    tensors: dict[str, TensorInfo],
    *,
    precise: bool = False,
    number: Number = "float32",
) -> Layout:
    """Places every tensor that the model uses. Raises Unsupported for a type it cannot express."""
    if number == "float16" and model.altup:
        raise Unsupported(
            f"{model.architecture}: blocks with inputs of their own, and keys and values that several"
            " of them read, are not supported on CUDA yet"
        )
    placer = Placer(tensors, precise=precise, number=number)
    for index, block in enumerate(model.blocks):
        _place_block(placer, index, block)
    if model.output_norm:
        placer.norm(model.output_norm)
    if model.output:
        placer.matrix("output", [model.output], rows=model.vocabulary)
    if model.encoder:
        _place_encoder(placer, model.encoder, model.embedding_length)
    embedding = _place_embedding(placer, model)
    table = _place_altup(placer, model.altup, model) if model.altup else None
    return replace(placer.finish(embedding), per_block=table)


def _place_block(placer: Placer, index: int, block: BlockShape) -> None:
    for norm in block.norms():
        placer.norm(norm)
    match block.mixer:
        case Attention():
            _place_attention(placer, index, block.mixer)
        case LatentAttention():
            _place_latent_attention(placer, block.mixer)
        case GatedDeltaNet() | Mamba2() | ShortConvolution():
            _place_recurrent(placer, block.mixer)
    placer.matrices_of(block.feed_forward.linears())
    if isinstance(block.feed_forward, Experts):
        if block.feed_forward.selection_bias:
            placer.vector(block.feed_forward.selection_bias)
        placer.experts(index, block.feed_forward)
    if block.altup:
        _place_block_altup(placer, block.altup)


def _place_recurrent(placer: Placer, mixer: GatedDeltaNet | Mamba2 | ShortConvolution) -> None:
    """What a state goes through stays fp32: it is summed up over a whole row."""
    kernel = (mixer.channels, 1, mixer.length)
    placer.array(mixer.kernel, kernel, number="float32")
    if isinstance(mixer, GatedDeltaNet):
        for name in (mixer.norm.weight, mixer.decay, mixer.time_bias):
            placer.vector(name, number="float32")
    if isinstance(mixer, Mamba2):
        _place_mamba2(placer, mixer)
    placer.matrices_of(mixer.linears())


def _place_mamba2(placer: Placer, mixer: Mamba2) -> None:
    for name in (mixer.kernel_bias, mixer.time_bias):
        placer.vector(name, number="float32")
    placer.array(mixer.decay, (mixer.heads,), number="float32")
    placer.array(mixer.skip, (mixer.heads, 1), number="float32")
    placer.array(mixer.norm, (mixer.inner,), number="float32")


def _place_attention(placer: Placer, index: int, attention: Attention) -> None:
    for norm in (attention.query_norm, attention.key_norm):
        if norm:
            placer.norm(norm)
    if attention.sinks:
        placer.vector(attention.sinks)
    is_normed = attention.query_norm is not None or attention.has_value_norm
    is_packed = not (is_normed or attention.has_output_gate)
    if attention.query and attention.key and attention.value and is_packed:
        projections = [attention.query, attention.key, attention.value]
        placer.together(f"blk.{index}.attn_qkv", projections)
        placer.matrices_of(each for each in (attention.gate, attention.output) if each)
    else:
        placer.matrices_of(attention.linears())


def _place_latent_attention(placer: Placer, attention: LatentAttention) -> None:
    for norm in (attention.query_norm, attention.key_value_norm):
        if norm:
            placer.norm(norm)
    joint = attention.nope_size + attention.value_size
    for name in attention.stacks():
        shape = placer.tensors[name].shape
        is_joint = name == attention.key_value_up
        placer.array(name, (attention.heads, joint, attention.latent) if is_joint else shape)
    placer.matrices_of(attention.linears())


def _place_encoder(placer: Placer, encoder: Encoder, width: int) -> None:
    if encoder.positions:
        placer.array(encoder.positions, placer.tensors[encoder.positions].shape)
    if encoder.token_types:
        placer.vector(encoder.token_types, length=width)
    if encoder.embedding_norm:
        placer.norm(encoder.embedding_norm)
    placer.matrices_of(iter(encoder.projections))


def _place_block_altup(placer: Placer, altup: BlockAltUp) -> None:
    placer.vector(altup.scale)
    for linear in altup.small():
        placer.array(linear.weight, (linear.rows, linear.columns))
    placer.matrices_of(altup.linears())


def _place_altup(placer: Placer, altup: AltUp, model: ModelShape) -> CodedTable:
    """Gives the table of what blocks have for each id."""
    width = model.embedding_length
    placer.matrices_of(altup.linears())
    placer.norm(altup.input_norm)
    placer.array(altup.gather, (altup.streams - 1, width, width))
    form = table_form_of(placer.tensors[altup.table.weight])
    return _table(placer.matrix(PER_BLOCK, [altup.table], rows=model.vocabulary, form=form))


def _place_embedding(placer: Placer, model: ModelShape) -> CodedTable:
    """A tied table is the head's own bytes, unless the head is split into two matrices."""
    head = placer.matrices.get("output")
    if head and model.is_tied and head.form.kind != "split" and head.form.bits != 2:
        return _table(head)
    form = table_form_of(placer.tensors[model.embedding.weight])
    return _table(placer.matrix(EMBEDDING, [model.embedding], rows=model.vocabulary, form=form))


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
