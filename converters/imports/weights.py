"""The bytes of one GGUF tensor from those of the folder, in slices: memory is a constant.

Numbers stay as they are. Vectors are widened to F32, which changes none; rows may change places
within a head; what is shifted is added to in F32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from converters.errors import MalformedFile
from converters.imports.recipe import Placed
from converters.imports.safetensors import StoredTensor

SLICE_BYTES = 8 << 20
_ITEMS = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}


def slices(tensor: Placed) -> Iterator[npt.NDArray[np.uint8]]:
    """In order, together `tensor`'s bytes. Raises MalformedFile where a file has become shorter."""
    if tensor.values:
        yield np.array(tensor.values, np.float32).view(np.uint8)
    for source in tensor.sources:
        yield from _bytes_of(source) if tensor.is_as_it_is else _of_source(tensor, source)


def _bytes_of(source: StoredTensor) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, source.nbytes, SLICE_BYTES):
        yield _read(source, start, min(SLICE_BYTES, source.nbytes - start))


def _of_source(tensor: Placed, source: StoredTensor) -> Iterator[npt.NDArray[np.uint8]]:
    item = np.dtype(_ITEMS[source.dtype])
    columns = source.elements // source.shape[0]
    rows = source.shape[0] if len(tensor.sources) > 1 else tensor.skip_rows + tensor.shape[0]
    step = max(1, SLICE_BYTES // (columns * item.itemsize))
    if tensor.head_rows:
        step = max(1, step // tensor.head_rows) * tensor.head_rows
    for first in range(tensor.skip_rows, rows, step):
        count = min(step, rows - first)
        raw = _read(source, first * columns * item.itemsize, count * columns * item.itemsize)
        numbers = raw.view(item).reshape(count, columns)
        if tensor.head_rows:
            numbers = _in_pairs(numbers, tensor.head_rows)
        if tensor.type_name != source.dtype or tensor.shift:
            numbers = _widened(numbers, source.dtype) + np.float32(tensor.shift)
        yield np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)


def _read(source: StoredTensor, start: int, length: int) -> npt.NDArray[np.uint8]:
    data = os.pread(source.descriptor, length, source.offset + start)
    if len(data) != length:
        raise MalformedFile(f"tensor {source.name!r}: the file ends inside it")
    return np.frombuffer(data, np.uint8)


def _in_pairs(rows: npt.NDArray[np.generic], head_rows: int) -> npt.NDArray[np.generic]:
    """Row i of a head's first half, then row i of its second, for every i."""
    halves = rows.reshape(-1, 2, head_rows // 2, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _widened(numbers: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)
