"""An adapter for a planned ONNX graph: where its arrays lie, and writing them.

Matrices that a layout holds as one (query, key and value) get one pair: the parts' A below each
other, their B as blocks on the diagonal. Two small products then serve all parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from msgspec.structs import replace

from converters.adapters.lora import Lora, Pair
from converters.adapters.numbers import Floats, rows_of_a, rows_of_b
from converters.artifact import StoredArray
from converters.output_file import OutputFile
from converters.targets.onnx.layout import ALIGNMENT_BYTES, LOOKED_UP, Layout, Matrix
from converters.targets.onnx.pieces import LowRank, Number, Piece
from converters.targets.onnx.rounding import Rounding, stored
from converters.tensor_reader import TensorReader


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One pair within a matrix: its rows from `row` on, its ranks from `rank` on."""

    pair: Pair
    low_rank: LowRank
    row: int
    rows: int
    rank: int


class AdapterLayout(msgspec.Struct, frozen=True, kw_only=True):
    low_rank: dict[str, LowRank]
    parts: tuple[Part, ...]
    weights_bytes: int

    def arrays(self) -> dict[str, StoredArray]:
        pieces = (piece for each in self.low_rank.values() for piece in (each.down, each.up))
        return {
            piece.name: StoredArray(
                shape=piece.shape, offset=piece.offset, is_half=piece.item == "float16"
            )
            for piece in pieces
        }


def plan_low_rank(lora: Lora, layout: Layout) -> AdapterLayout:
    """Every pair must have been matched with the layout's model."""
    pairs = {pair.target: pair for pair in lora.pairs}
    placer = _Placer(layout.number)
    for matrix in layout.matrices.values():
        placer.matrix(matrix, pairs)
    placed = {part.pair.target for part in placer.parts}
    if left := sorted(pairs.keys() - placed):
        raise RuntimeError(f"the adapter's {left[0]!r} has no place in the layout")
    return AdapterLayout(
        low_rank=placer.low_rank, parts=tuple(placer.parts), weights_bytes=placer.end
    )


class _Placer:
    def __init__(self, number: Number) -> None:
        """`number` is what activations are computed in."""
        self._number: Number = number
        self.low_rank: dict[str, LowRank] = {}
        self.parts: list[Part] = []
        self.end = 0

    def matrix(self, matrix: Matrix, pairs: dict[str, Pair]) -> None:
        found = [pairs.get(source.tensor.name) for source in matrix.sources]
        rank = sum(pair.rank for pair in found if pair)
        if not rank or matrix.name in LOOKED_UP:
            return
        low_rank = LowRank(
            down=self._piece(f"{matrix.name}.lora_down", (rank, matrix.columns)),
            up=self._piece(f"{matrix.name}.lora_up", (matrix.rows, rank)),
        )
        self.low_rank[matrix.name] = low_rank
        row = rank = 0
        for source, pair in zip(matrix.sources, found, strict=True):
            if pair:
                part = Part(pair=pair, low_rank=low_rank, row=row, rows=source.rows, rank=rank)
                self.parts.append(part)
                rank += pair.rank
            row += source.rows

    def _piece(self, name: str, shape: tuple[int, ...]) -> Piece:
        piece = Piece(name=name, item=self._number, shape=shape, offset=0)
        piece = replace(piece, offset=-(-self.end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        self.end = piece.offset + piece.nbytes
        return piece


def write_low_rank(
    layout: AdapterLayout, reader: TensorReader, target: OutputFile, advance: Callable[[int], None]
) -> Rounding:
    """The whole of `adapter.bin`; what no part covers are zeros. What fp16 took is told.

    Raises MalformedFile, OSError, and Unsupported for what fp16 cannot hold.
    """
    target.resize(layout.weights_bytes)
    rounding = Rounding()
    for part in layout.parts:
        for piece, row, numbers in _rows(part, reader):
            values = stored(numbers, piece, part.pair.target)
            rounding.add_stored(numbers, values)
            offset = piece.offset + row * piece.shape[1] * values.itemsize
            advance(target.put(values, offset))
    return rounding


def _rows(part: Part, reader: TensorReader) -> Iterator[tuple[Piece, int, Floats]]:
    """(piece, its row, whole rows of it)."""
    down, up = part.low_rank.down, part.low_rank.up
    for first, numbers in rows_of_a(reader, part.pair):
        yield down, part.rank + first, numbers
    for first, numbers in rows_of_b(reader, part.pair, range(part.rows)):
        whole = np.zeros((len(numbers), up.shape[1]), np.float32)
        whole[:, part.rank : part.rank + part.pair.rank] = numbers
        yield up, part.row + first, whole
