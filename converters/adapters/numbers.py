"""The numbers of a low-rank pair, in row slices: memory is a constant, whatever the rank.

The scale is folded into B, so that whoever applies the pair only multiplies and adds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from converters.adapters.lora import Pair
from converters.errors import MalformedFile
from converters.gguf import TensorInfo
from converters.tensor_reader import TensorReader

# Numbers per slice: 4 MiB as fp32.
SLICE_ELEMENTS = 1 << 20

Floats = npt.NDArray[np.float32]


def rows_of_a(reader: TensorReader, pair: Pair) -> Iterator[tuple[int, Floats]]:
    """(first row, fp32 [rows, columns]) of A [rank, columns]."""
    return _slices(reader, pair.a, range(pair.rank), 1)


def rows_of_b(
    reader: TensorReader, pair: Pair, rows: range, unit: int = 1
) -> Iterator[tuple[int, Floats]]:
    """(first row, fp32 [rows, rank]) of scale · B; only of `rows`, whole units at a time."""
    scale = np.float32(pair.scale)
    for first, numbers in _slices(reader, pair.b, rows, unit):
        with np.errstate(over="ignore"):
            scaled = numbers * scale
        if not np.isfinite(scaled).all():
            raise MalformedFile(f"adapter tensor {pair.b.name!r} times {pair.scale} is not finite")
        yield first, scaled


def _slices(
    reader: TensorReader, tensor: TensorInfo, rows: range, unit: int
) -> Iterator[tuple[int, Floats]]:
    columns = tensor.shape[-1]
    step = max(1, SLICE_ELEMENTS // (columns * unit)) * unit
    for first in range(rows.start, rows.stop, step):
        count = min(step, rows.stop - first)
        numbers = reader.floats(tensor, first * columns, count * columns)
        yield first, numbers.reshape(count, columns)
