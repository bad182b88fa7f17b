"""An adapter for a planned MLX model: `adapter.safetensors`, arrays named after the modules.

Rows of B go where the module's own rows went (heads that rotate pairs become halves there), columns
of A where its columns went.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
from msgspec.structs import replace

from converters.adapters.lora import Lora, Pair
from converters.adapters.numbers import Floats, rows_of_a, rows_of_b
from converters.errors import Unsupported
from converters.output_file import OutputFile
from converters.targets.mlx.layout import Layout, Matrix
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
    """Every pair must have been matched with the layout's model. Raises Unsupported."""
    shared = Counter(matrix.path for matrix in layout.matrices)
    parts = [_part(pair, each, shared) for pair in lora.pairs for each in _places(pair, layout)]
    arrays = [array for part in parts for array in (part.a, part.b)]
    placed, header = place(arrays)
    return AdapterLayout(
        parts=tuple(replace(part, a=placed[part.a.name], b=placed[part.b.name]) for part in parts),
        header=header,
        weights_bytes=len(header) + sum(array.nbytes for array in arrays),
    )


def _places(pair: Pair, layout: Layout) -> list[Matrix]:
    """The modules that have rows of the pair's matrix."""
    found = [each for each in layout.matrices if each.tensor.name == pair.target]
    if not found:
        raise RuntimeError(f"the adapter's {pair.target!r} has no place in the layout")
    return found


def _part(pair: Pair, matrix: Matrix, shared: Counter[str]) -> Part:
    if matrix.is_transposed or shared[matrix.path] > 1:
        raise Unsupported(
            f"adapter tensor {pair.a.name!r}: {matrix.path!r} is made of several matrices on MLX"
        )
    shapes = {"lora_a": (pair.rank, matrix.columns), "lora_b": (matrix.rows, pair.rank)}
    arrays = {
        role: Array(name=f"{matrix.path}.{role}", item="F32", shape=shape)
        for role, shape in shapes.items()
    }
    return Part(pair=pair, matrix=matrix, a=arrays["lora_a"], b=arrays["lora_b"])


def write_low_rank(
    layout: AdapterLayout, reader: TensorReader, target: OutputFile, advance: Callable[[int], None]
) -> None:
    """The whole file. Raises MalformedFile, OSError."""
    target.resize(layout.weights_bytes)
    target.put(layout.header, 0)
    for part in layout.parts:
        for array, first, numbers in _rows(part, reader):
            advance(target.put(numbers, array.offset + first * numbers[0].nbytes))


def _rows(part: Part, reader: TensorReader) -> Iterator[tuple[Array, int, Floats]]:
    """(array, its row, whole rows of it)."""
    for first, numbers in rows_of_a(reader, part.pair):
        yield part.a, first, _in_order(numbers, part.matrix.column_order)
    head_size = part.matrix.head_size
    for run in part.matrix.runs:
        rows = range(run.source, run.source + run.count)
        for first, numbers in rows_of_b(reader, part.pair, rows, head_size or 1):
            turned = numbers[halves_of_pairs(len(numbers), head_size)] if head_size else numbers
            yield part.b, run.target + first - run.source, turned


def _in_order(numbers: Floats, order: tuple[int, ...]) -> Floats:
    """Each row's equal parts in another order."""
    if not order:
        return numbers
    return numbers.reshape(len(numbers), len(order), -1)[:, order].reshape(numbers.shape)
