"""Writes `weights.bin` as a layout says, in row slices: memory is a constant, whatever the model.

Decides nothing but how many rows go at once. Codes and scales are the file's own; only where the
difference of two GGML numbers needs more than fp32 has, a rounding appears, and it is measured.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.artifact import WEIGHTS_FILE, Exactness, TensorRecord
from converters.blocks import BLOCK_TYPES, Repacked
from converters.errors import MalformedFile
from converters.gguf import TensorInfo
from converters.output_file import OutputFile, new_file
from converters.parallel import RunInOrder
from converters.targets.onnx import expert_weights
from converters.targets.onnx.expert_weights import ZeroPointed
from converters.targets.onnx.experts import ExpertSource, Stack
from converters.targets.onnx.layout import Layout, Matrix, Source, Vector
from converters.targets.onnx.pieces import NUMBER_BITS, Piece
from converters.targets.onnx.rounding import Rounding, stored
from converters.tensor_reader import BlockBuffer, TensorReader

# Weights per slice. Smaller ones cost system calls for the corrections' columns.
SLICE_ELEMENTS = 1 << 22
# Of them are read, converted and written at once: near the second-level cache.
STEP_ELEMENTS = 1 << 19

# Types whose numbers go into the file as they are.
_SAME = {"F16": "float16", "BF16": "bfloat16"}

Array = npt.NDArray[np.generic]
Codes = npt.NDArray[np.uint8]


def write_weights(
    layout: Layout,
    reader: TensorReader,
    folder: pathlib.Path,
    run: RunInOrder,
    advance: Callable[[int], None],
) -> list[TensorRecord]:
    """The file of weights; gives what became of each tensor, once each."""
    with new_file(folder / WEIGHTS_FILE) as target:
        records = WeightsWriter(reader, target).write(layout, run, advance)
    return list({record.name: record for record in records}.values())


class Slice(NamedTuple):
    """`rows` rows of a tensor from `start` on, which are the matrix's from `row` on."""

    matrix: Matrix
    tensor: TensorInfo
    start: int
    rows: int
    row: int

    def steps(self) -> Iterator[Slice]:
        step = max(1, STEP_ELEMENTS // self.matrix.columns)
        for first in range(0, self.rows, step):
            rows = min(step, self.rows - first)
            yield self._replace(start=self.start + first, rows=rows, row=self.row + first)


class StackSlice(NamedTuple):
    """`rows` rows of each source of one expert, from the source's row `start` on."""

    stack: Stack
    expert: int
    start: int
    rows: int

    @property
    def place(self) -> int:
        """The first of them among all experts' rows in the stack."""
        return self.expert * self.stack.rows + self.start * len(self.stack.sources)

    def weights(self, source: ExpertSource) -> tuple[int, int]:
        """The first weight of the source's rows in its tensor, and how many they are."""
        columns = self.stack.columns
        first = expert_weights.first_weight(source, self.expert, self.start, columns)
        return first, self.rows * columns

    def steps(self) -> Iterator[StackSlice]:
        """So many weights of each source."""
        step = max(1, STEP_ELEMENTS // self.stack.columns)
        for first in range(0, self.rows, step):
            yield self._replace(start=self.start + first, rows=min(step, self.rows - first))


class WeightsWriter:
    """Writes to a file that the caller closes. Copies of it in other processes write slices too."""

    def __init__(self, reader: TensorReader, target: OutputFile) -> None:
        self._reader = reader
        self._target = target
        self._buffer = BlockBuffer()

    def write(
        self, layout: Layout, run: RunInOrder, advance: Callable[[int], None]
    ) -> list[TensorRecord]:
        """The whole file; gives what became of each tensor. Raises MalformedFile, OSError.

        `advance` is told bytes as they are written.
        """
        self._target.resize(layout.weights_bytes)
        records = [self._write_vector(vector, advance) for vector in layout.vectors.values()]
        records.append(self._write_matrices(layout.matrices, run, advance))
        records.append(self._write_stacks(list(layout.stacks.values()), run, advance))
        return [record for group in records for record in group]

    def _write_vector(self, vector: Vector, advance: Callable[[int], None]) -> list[TensorRecord]:
        offset, records = vector.piece.offset, []
        for source in vector.sources:
            numbers, rounding = self._reader.floats(source.tensor, 0, source.rows), Rounding()
            values = stored(numbers, vector.piece, source.tensor.name)
            rounding.add_stored(numbers, values)
            self._put(values, offset)
            advance(values.nbytes)
            offset += values.nbytes
            records.append(_record(source.tensor, vector.piece.item, rounding))
        return records

    def _write_matrices(
        self, matrices: dict[str, Matrix], run: RunInOrder, advance: Callable[[int], None]
    ) -> list[TensorRecord]:
        sums = {(name, source.tensor.name): Rounding() for name, source in _parts(matrices)}

        def finish(done: tuple[Slice, Rounding, int]) -> None:
            part, rounding, written = done
            sums[part.matrix.name, part.tensor.name].merge(rounding)
            advance(written)

        slices = (part for matrix in matrices.values() for part in _slices(matrix))
        run(self._write_slice, slices, finish)
        return [
            _record(source.tensor, _form_name(matrices[name]), sums[name, source.tensor.name])
            for name, source in _parts(matrices)
        ]

    def _write_slice(self, part: Slice) -> tuple[Slice, Rounding, int]:
        """What it cost and the bytes written, beside the slice. In any process."""
        rounding, written = Rounding(), 0
        if part.matrix.form.kind in NUMBER_BITS:
            written = sum(self._write_floats(step, rounding) for step in part.steps())
            return part, rounding, written
        corrections: list[Array] = []
        for step in part.steps():
            repacked = self._repacked(step)
            rounding.add(repacked)
            written += self._write_codes(step, repacked, rounding, corrections)
        if corrections:
            piece = part.matrix.pieces["correction"]
            written += self._put_columns(piece, np.concatenate(corrections), part.row)
        return part, rounding, written

    def _repacked(self, part: Slice) -> Repacked:
        columns = part.matrix.columns
        first, count = part.start * columns, part.rows * columns
        raw = self._reader.blocks(part.tensor, first, count, self._buffer)
        repacked = BLOCK_TYPES[part.tensor.type_name].repack(raw)
        _check_finite(repacked, part.tensor)
        return repacked

    def _write_floats(self, part: Slice, rounding: Rounding) -> int:
        matrix = part.matrix
        values = matrix.pieces["values"]
        first, length = part.start * matrix.columns, part.rows * matrix.columns
        if values.item == _SAME.get(part.tensor.type_name):
            raw = self._reader.blocks(part.tensor, first, length, self._buffer)
            numbers: Array = raw.view("<u2")
            return self._put_rows(values, numbers, part.row)
        exact = self._reader.floats(part.tensor, first, length, self._buffer)
        narrow = stored(exact, values, part.tensor.name)
        rounding.add_stored(exact, narrow)
        return self._put_rows(values, narrow, part.row)

    def _write_codes(
        self, part: Slice, repacked: Repacked, rounding: Rounding, corrections: list[Array]
    ) -> int:
        """All but the correction, which goes to the list: [rows, blocks]."""
        pieces, row, name = part.matrix.pieces, part.row, part.tensor.name
        scales, correction = stored(repacked.scales, pieces["scales"], name), repacked.correction
        if correction is not None:
            correction = stored(correction, pieces["correction"], name)
        if scales.dtype == np.float16:
            rounding.add_narrowed(repacked, scales, correction)
        written = self._put_rows(pieces["scales"], scales, row)
        if part.matrix.form.kind == "codes":
            written += self._put_rows(pieces["codes"], repacked.codes, row)
        else:
            high, low = split_codes(repacked.codes)
            written += self._put_rows(pieces["high"], high, row)
            written += self._put_rows(pieces["low"], low, row)
            high_scales = repacked.scales * np.float32(16)
            written += self._put_rows(pieces["high_scales"], high_scales, row)
        if correction is not None:
            corrections.append(correction.reshape(part.rows, -1))
        return written

    def _write_stacks(
        self, stacks: list[Stack], run: RunInOrder, advance: Callable[[int], None]
    ) -> list[TensorRecord]:
        sums = {stack.name: [Rounding() for _ in stack.sources] for stack in stacks}

        def finish(done: tuple[StackSlice, list[Rounding], int]) -> None:
            part, roundings, written = done
            for total, rounding in zip(sums[part.stack.name], roundings, strict=True):
                total.merge(rounding)
            advance(written)

        slices = (
            StackSlice(stack, *each) for stack in stacks for each in expert_weights.slices(stack)
        )
        run(self._write_stack_slice, slices, finish)
        return [
            record for stack in stacks for record in self._stack_records(stack, sums[stack.name])
        ]

    def _write_stack_slice(self, part: StackSlice) -> tuple[StackSlice, list[Rounding], int]:
        """One rounding for each of the stack's sources. In any process."""
        roundings = [Rounding() for _ in part.stack.sources]
        is_plain = part.stack.form.kind == "floats"
        write = self._write_expert_floats if is_plain else self._write_expert_codes
        return part, roundings, sum(write(step, roundings) for step in part.steps())

    def _stack_records(self, stack: Stack, roundings: list[Rounding]) -> list[TensorRecord]:
        records = self._write_expert_biases(stack)
        name = _stack_form_name(stack)
        for source, rounding in zip(stack.sources, roundings, strict=True):
            records.append(_record(source.tensor, name, rounding, "re-encoded"))
        return records

    def _write_expert_floats(self, part: StackSlice, roundings: list[Rounding]) -> int:
        stack = part.stack
        parts = [
            self._reader.floats(source.tensor, *part.weights(source), self._buffer).reshape(
                part.rows, -1
            )
            for source in stack.sources
        ]
        rows = expert_weights.interleaved(parts)
        piece = stack.pieces["values"]
        narrow = stored(rows, piece, stack.sources[0].tensor.name)
        for rounding in roundings:
            rounding.add_stored(rows, narrow)
        return self._put_stack_rows(piece, narrow, part.place)

    def _write_expert_codes(self, part: StackSlice, roundings: list[Rounding]) -> int:
        form, pieces = part.stack.form, part.stack.pieces
        parts = [
            self._expert_codes(part, source, rounding)
            for source, rounding in zip(part.stack.sources, roundings, strict=True)
        ]
        rows = [each.codes.reshape(part.rows, -1) for each in parts]
        codes = expert_weights.packed(expert_weights.interleaved(rows), form.bits)
        written = self._put_stack_rows(pieces["codes"], codes, part.place)
        for role in ("scales", "zeros") if form.has_zeros else ("scales",):
            arrays = [getattr(each, role).reshape(part.rows, -1) for each in parts]
            values = stored(expert_weights.interleaved(arrays), pieces[role], part.stack.name)
            written += self._put_stack_rows(pieces[role], values, part.place)
        return written

    def _expert_codes(
        self, part: StackSlice, source: ExpertSource, rounding: Rounding
    ) -> ZeroPointed:
        form, tensor = part.stack.form, source.tensor
        raw = self._reader.blocks(tensor, *part.weights(source), self._buffer)
        found = expert_weights.coded(tensor.type_name, raw, form.bits, form.block)
        if not np.isfinite(found.scales).all():
            raise MalformedFile(f"tensor {tensor.name!r} holds a scale that is not finite")
        rounding.add_experts(found)
        scales = stored(found.scales, part.stack.pieces["scales"], tensor.name)
        if scales.dtype == np.float16:
            rounding.add_expert_scales(found, scales)
        return found

    def _write_expert_biases(self, stack: Stack) -> list[TensorRecord]:
        if not stack.biases:
            return []
        parts = [
            self._reader.floats(source.tensor, 0, source.tensor.elements).reshape(
                stack.experts, source.stride, 1
            )[:, source.first : source.first + source.rows]
            for source in stack.biases
        ]
        piece, numbers = stack.pieces["bias"], np.concatenate(parts, axis=2)
        values, rounding = stored(numbers, piece, stack.biases[0].tensor.name), Rounding()
        rounding.add_stored(numbers, values)
        self._put(values, piece.offset)
        return [_record(source.tensor, piece.item, rounding) for source in stack.biases]

    def _put_stack_rows(self, piece: Piece, values: Array, row: int) -> int:
        """As `_put_rows`, for a piece of [experts, rows, ·]."""
        self._put(values, piece.offset + row * (piece.nbytes // (piece.shape[0] * piece.shape[1])))
        return values.nbytes

    def _put_rows(self, piece: Piece, values: Array, row: int) -> int:
        self._put(values, piece.offset + row * (piece.nbytes // piece.shape[0]))
        return values.nbytes

    def _put_columns(self, piece: Piece, values: Array, column: int) -> int:
        """`values` [rows, blocks] into the piece [blocks, all rows], from `column` on."""
        for index, line in enumerate(np.ascontiguousarray(values.T)):
            place = index * piece.shape[1] + column
            self._put(line, piece.offset + place * values.itemsize)
        return values.nbytes

    def _put(self, values: Array, offset: int) -> None:
        self._target.put(values, offset)


def split_codes(codes: Codes) -> tuple[Codes, Codes]:
    """8-bit codes → their high and low halves, each two to a byte, the first one low."""
    even, odd = codes.reshape(-1)[0::2], codes.reshape(-1)[1::2]
    four, low, high = np.uint8(4), np.uint8(0x0F), np.uint8(0xF0)
    return (even >> four) | (odd & high), (even & low) | (odd << four)


def _check_finite(repacked: Repacked, tensor: TensorInfo) -> None:
    arrays = (repacked.scales, repacked.correction)
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        raise MalformedFile(f"tensor {tensor.name!r} holds a scale that is not finite")


def _parts(matrices: dict[str, Matrix]) -> Iterator[tuple[str, Source]]:
    return ((name, source) for name, matrix in matrices.items() for source in matrix.sources)


def _slices(matrix: Matrix) -> Iterator[Slice]:
    """All of a matrix, about SLICE_ELEMENTS at a time."""
    step, first = max(1, SLICE_ELEMENTS // matrix.columns), 0
    for source in matrix.sources:
        for start in range(0, source.rows, step):
            count = min(step, source.rows - start)
            yield Slice(matrix, source.tensor, start, count, first + start)
        first += source.rows


def _form_name(matrix: Matrix) -> str:
    form = matrix.form
    if not form.block:
        return form.kind
    tail = ", corrected" if form.is_corrected else ""
    return f"{form.bits}-bit {form.kind} of {form.block}{tail}"


def _stack_form_name(stack: Stack) -> str:
    form = stack.form
    if form.kind == "floats":
        return f"{stack.pieces['values'].item}, stacked experts"
    tail = ", zero points" if form.has_zeros else ""
    return f"{form.bits}-bit codes of {form.block}, stacked experts{tail}"


def _record(
    tensor: TensorInfo, form: str, rounding: Rounding, loss: Exactness = "scale-rounded"
) -> TensorRecord:
    return TensorRecord(
        name=tensor.name,
        source_type=tensor.type_name,
        shape=tensor.shape,
        exactness=loss if rounding.largest else "exact",
        form=form,
        max_error=rounding.largest,
        rms_error=rounding.rms,
    )
