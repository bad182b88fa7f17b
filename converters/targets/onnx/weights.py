"""Writes `weights.bin` as a layout says, in row slices: memory is a constant, whatever the model.

Decides nothing but how many rows go at once. Codes and scales are the file's own; only where the
difference of two GGML numbers needs more than fp32 has, a rounding appears, and it is measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from converters.artifact import TensorRecord
from converters.blocks import BLOCK_TYPES, Repacked
from converters.errors import MalformedFile
from converters.gguf import TensorInfo
from converters.targets.onnx.layout import Layout, Matrix, Piece, Source, Vector
from converters.tensor_reader import TensorReader

# Weights per slice: 16 MiB as fp32. Smaller ones cost system calls for the corrections' columns.
SLICE_ELEMENTS = 1 << 22

Array = npt.NDArray[np.generic]
Codes = npt.NDArray[np.uint8]


class Rounding(msgspec.Struct):
    """Largest and summed squared distance from the fp32 dequantisation, over `count` numbers."""

    largest: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, repacked: Repacked) -> None:
        """An error of a correction is the error of every weight in its block."""
        self.count += repacked.scales.size * repacked.block
        if repacked.rounding is not None and repacked.rounding.any():
            errors = repacked.rounding.astype(np.float64)
            self.largest = max(self.largest, float(np.abs(errors).max()))
            self.squares += float(np.square(errors).sum()) * repacked.block

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0


class WeightsWriter:
    """Writes to a descriptor that the caller owns; `advance` is told bytes as they are written."""

    def __init__(self, reader: TensorReader, target: int, advance: Callable[[int], None]) -> None:
        self._reader = reader
        self._target = target
        self._advance = advance

    def write(self, layout: Layout) -> list[TensorRecord]:
        """The whole file; gives what became of each tensor. Raises MalformedFile, OSError."""
        os.ftruncate(self._target, layout.weights_bytes)
        records = [self._write_vector(vector) for vector in layout.vectors.values()]
        records += [self._write_matrix(matrix) for matrix in layout.matrices.values()]
        return [record for group in records for record in group]

    def _write_vector(self, vector: Vector) -> list[TensorRecord]:
        offset, records = vector.piece.offset, []
        for source in vector.sources:
            numbers = self._reader.floats(source.tensor, 0, source.rows)
            self._put(numbers, offset)
            offset += numbers.nbytes
            records.append(_record(source.tensor, "float32", Rounding()))
        return records

    def _write_matrix(self, matrix: Matrix) -> list[TensorRecord]:
        first, records = 0, []
        for source in matrix.sources:
            rounding = self._write_rows(matrix, source, first)
            records.append(_record(source.tensor, _form_name(matrix), rounding))
            first += source.rows
        return records

    def _write_rows(self, matrix: Matrix, source: Source, first: int) -> Rounding:
        """One source's rows, from the matrix's row `first` on."""
        rounding = Rounding()
        for start, count in _slices(source.rows, matrix.columns):
            if matrix.form.kind in ("float32", "float16"):
                self._write_floats(matrix, source.tensor, start, count, first + start)
            else:
                raw = self._reader.blocks(
                    source.tensor, start * matrix.columns, count * matrix.columns
                )
                repacked = BLOCK_TYPES[source.tensor.type_name].repack(raw)
                _check_finite(repacked, source.tensor)
                rounding.add(repacked)
                self._write_codes(matrix, repacked, first + start, count)
        return rounding

    def _write_floats(
        self, matrix: Matrix, tensor: TensorInfo, start: int, count: int, row: int
    ) -> None:
        values = matrix.pieces["values"]
        first, length = start * matrix.columns, count * matrix.columns
        if values.item == "float16":
            numbers: Array = self._reader.blocks(tensor, first, length).view("<f2")
        else:
            numbers = self._reader.floats(tensor, first, length)
        self._put_rows(values, numbers, row)

    def _write_codes(self, matrix: Matrix, repacked: Repacked, row: int, count: int) -> None:
        pieces = matrix.pieces
        self._put_rows(pieces["scales"], repacked.scales, row)
        if matrix.form.kind == "codes":
            self._put_rows(pieces["codes"], repacked.codes, row)
        else:
            high, low = split_codes(repacked.codes)
            self._put_rows(pieces["high"], high, row)
            self._put_rows(pieces["low"], low, row)
            self._put_rows(pieces["high_scales"], repacked.scales * np.float32(16), row)
        if repacked.correction is not None:
            self._put_columns(pieces["correction"], repacked.correction.reshape(count, -1), row)

    def _put_rows(self, piece: Piece, values: Array, row: int) -> None:
        self._put(values, piece.offset + row * (piece.nbytes // piece.shape[0]))
        self._advance(values.nbytes)

    def _put_columns(self, piece: Piece, values: Array, column: int) -> None:
        """`values` [rows, blocks] into the piece [blocks, all rows], from `column` on."""
        for index, line in enumerate(np.ascontiguousarray(values.T)):
            place = index * piece.shape[1] + column
            self._put(line, piece.offset + place * values.itemsize)
        self._advance(values.nbytes)

    def _put(self, values: Array, offset: int) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while data:
            written = os.pwrite(self._target, data, offset)
            data, offset = data[written:], offset + written


def split_codes(codes: Codes) -> tuple[Codes, Codes]:
    """8-bit codes → their high and low halves, each two to a byte, the first one low."""
    even, odd = codes.reshape(-1)[0::2], codes.reshape(-1)[1::2]
    four, low, high = np.uint8(4), np.uint8(0x0F), np.uint8(0xF0)
    return (even >> four) | (odd & high), (even & low) | (odd << four)


def _check_finite(repacked: Repacked, tensor: TensorInfo) -> None:
    arrays = (repacked.scales, repacked.correction)
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        raise MalformedFile(f"tensor {tensor.name!r} holds a scale that is not finite")


def _slices(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of about SLICE_ELEMENTS each."""
    step = max(1, SLICE_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield start, min(step, rows - start)


def _form_name(matrix: Matrix) -> str:
    form = matrix.form
    if not form.block:
        return form.kind
    tail = ", corrected" if form.is_corrected else ""
    return f"{form.bits}-bit {form.kind} of {form.block}{tail}"


def _record(tensor: TensorInfo, form: str, rounding: Rounding) -> TensorRecord:
    return TensorRecord(
        name=tensor.name,
        source_type=tensor.type_name,
        shape=tensor.shape,
        exactness="scale-rounded" if rounding.largest else "exact",
        form=form,
        max_error=rounding.largest,
        rms_error=rounding.rms,
    )
