"""An adapter for a planned MLX model: `adapter.safetensors`, arrays named after the modules.

Rows of B go where the module's own rows went: heads that rotate pairs become halves there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from converters.adapters.lora import Lora, Pair
from converters.adapters.numbers import rows_of_a, rows_of_b
from converters.errors import Unsupported
from converters.targets.mlx.layout import Layout, Matrix, Run
from converters.targets.mlx.safetensors import Array, place
from converters.targets.mlx.weights import halves_of_pairs
from converters.tensor_reader import TensorReader


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A [rank, columns] and B [rows, rank] of one module, fp32."""

    pair: Pair
    matrix: Matrix
    a: Array
    b: Array


class AdapterLayout(msgspec.Struct, frozen=True, kw_only=True):
    parts: tuple[Part, ...]
    header: bytes
    weights_bytes: int


def plan_low_rank(lora: Lora, layout: Layout) -> AdapterLayout:
    """Every pair must have been matched with the layout's model."""
    matrices = {matrix.tensor.name: matrix for matrix in layout.matrices}
    parts = [_part(pair, matrices[pair.target]) for pair in lora.pairs]
    arrays = [array for part in parts for array in (part.a, part.b)]
    placed, header = place(arrays)
    return AdapterLayout(
        parts=tuple(replace(part, a=placed[part.a.name], b=placed[part.b.name]) for part in parts),
        header=header,
        weights_bytes=len(header) + sum(array.nbytes for array in arrays),
    )


def _part(pair: Pair, matrix: Matrix) -> Part:
    if matrix.runs != (Run(0, 0, matrix.rows),) or matrix.column_order or matrix.is_transposed:
        raise Unsupported(f"an adapter for {pair.target!r}, which MLX has in another order")
    shapes = {"lora_a": (pair.rank, matrix.columns), "lora_b": (matrix.rows, pair.rank)}
    arrays = {
        role: Array(name=f"{matrix.path}.{role}", item="F32", shape=shape)
        for role, shape in shapes.items()
    }
    return Part(pair=pair, matrix=matrix, a=arrays["lora_a"], b=arrays["lora_b"])


def write_low_rank(
    layout: AdapterLayout, reader: TensorReader, target: int, advance: Callable[[int], None]
) -> None:
    """The whole file. Raises MalformedFile, OSError."""
    os.ftruncate(target, layout.weights_bytes)
    os.pwrite(target, layout.header, 0)
    for part in layout.parts:
        for array, first, numbers in _rows(part, reader):
            advance(_put(target, numbers, array.offset + first * numbers[0].nbytes))


def _rows(part: Part, reader: TensorReader) -> Iterator[tuple[Array, int, npt.NDArray[np.float32]]]:
    """(array, its row, whole rows of it)."""
    for first, numbers in rows_of_a(reader, part.pair):
        yield part.a, first, numbers
    head_size = part.matrix.head_size
    for first, numbers in rows_of_b(reader, part.pair, part.matrix.rows, head_size or 1):
        turned = numbers[halves_of_pairs(len(numbers), head_size)] if head_size else numbers
        yield part.b, first, turned


def _put(target: int, numbers: npt.NDArray[np.float32], offset: int) -> int:
    data = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data
    count = len(data)
    while data:
        written = os.pwrite(target, data, offset)
        data, offset = data[written:], offset + written
    return count
