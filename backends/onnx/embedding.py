"""The embedding lookup: rows of a coded table in `weights.bin`, by id. Only touched pages are read."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backends.types import EngineError
from converters.artifact import WEIGHTS_FILE, CodedTable, OnnxGraph


def input_table(folder: pathlib.Path, graph: OnnxGraph) -> EmbeddingTable:
    """What gives a graph's `inputs_embeds`. Raises EngineError("load")."""
    weights, own = folder / WEIGHTS_FILE, None
    if graph.per_block:
        own = EmbeddingTable(weights, graph.per_block, graph.per_block_scale)
    zeros = graph.deepstack * graph.embedding.columns
    return EmbeddingTable(weights, graph.embedding, graph.embedding_scale, behind=own, zeros=zeros)


class EmbeddingTable:
    """`lookup` gives fp32 rows of the table, times `scale`; those of the table `behind`, or `zeros`, after them.

    Raises EngineError("load") for a table outside its file or of an unknown form.
    """

    def __init__(
        self,
        weights: pathlib.Path,
        table: CodedTable,
        scale: float = 1.0,
        behind: EmbeddingTable | None = None,
        zeros: int = 0,
    ) -> None:
        self._table = table
        self._behind = behind
        self._zeros = zeros
        self._scale = np.float32(scale)
        self._weights = weights
        self._size = weights.stat().st_size
        rows, columns = table.rows, table.columns
        if table.bits in (16, 32):
            dtype = np.dtype(np.float16 if table.bits == 16 else np.float32)
            self._codes = self._map(table.codes_offset, dtype, (rows, columns))
            return
        if table.bits not in (4, 8) or table.block < 1 or columns % table.block:
            raise EngineError("load", f"unknown embedding form: {table.bits} bits")
        groups = columns // table.block
        if table.number_bits not in (16, 32):
            raise EngineError("load", f"unknown embedding scales: {table.number_bits} bits")
        number = np.dtype(np.float16 if table.number_bits == 16 else np.float32)
        coded = (rows, columns * table.bits // 8)
        self._codes = self._map(table.codes_offset, np.dtype(np.uint8), coded)
        self._scales = self._map(table.scales_offset, number, (rows, groups))
        self._correction = None
        if table.correction_offset >= 0:
            self._correction = self._map(table.correction_offset, number, (groups, rows))

    def _map(self, offset: int, dtype: np.dtype, shape: tuple[int, int]) -> np.ndarray:
        end = offset + shape[0] * shape[1] * dtype.itemsize
        if offset < 0 or min(shape) < 1 or end > self._size:
            raise EngineError("load", f"{self._weights.name} is shorter than its artifact says")
        mapped = np.memmap(self._weights, dtype=dtype, mode="r", offset=offset, shape=shape)
        return mapped.view(np.ndarray)  # the subclass makes every indexing several times slower

    def lookup(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Float32 [len(ids), columns and what stands behind them].

        Ids must be in range; negative ones are not checked here.
        """
        index = np.asarray(ids, np.int64)
        if self._table.bits in (16, 32):
            values = self._codes[index].astype(np.float32)
        else:
            values = self._decoded(index)
        values = values if self._scale == 1 else values * self._scale
        if self._zeros:
            wide = np.zeros((len(index), values.shape[1] + self._zeros), np.float32)
            wide[:, : values.shape[1]] = values
            return wide
        return np.concatenate((values, self._behind.lookup(index)), 1) if self._behind else values

    def _decoded(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """In the order of `CodedTable`: bit-equal to ggml's fp32 values."""
        table = self._table
        codes = self._unpacked(index).reshape(len(index), -1, table.block)
        scales: NDArray[np.float32] = self._scales[index].astype(np.float32, copy=False)
        values = scales[:, :, None] * (codes - np.float32(1 << (table.bits - 1)))
        if self._correction is not None:
            values += self._correction[:, index].T[:, :, None]
        return values.reshape(len(index), table.columns).astype(np.float32, copy=False)

    def _unpacked(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Codes as float32, low bits first."""
        packed = self._codes[index]
        if self._table.bits == 8:
            return packed.astype(np.float32)
        pairs = np.stack((packed & 15, packed >> 4), axis=-1)
        return pairs.astype(np.float32)
