"""Vectors of texts from a model that was made to generate: its last hidden state, as the field does.

One text at a time, on a row of the engine's own cache that is free for it; nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.engine.contract import EngineCapabilities
from backends.engine.pace import EXACT_CHUNK, plan_fixed_chunk
from backends.engine.texts import check_text
from backends.onnx.binding import BoundGraph
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.prefix_cache import PrefixCache
from backends.onnx.rows import Row
from backends.onnx.scores import Scores
from backends.types import (
    EngineError,
)


class VectorSource:
    def __init__(self, graph: BoundGraph, embedding: EmbeddingTable, cache: PrefixCache) -> None:
        self._graph = graph
        self._embedding = embedding
        self._cache = cache

    def vector(self, ids: Sequence[int], limits: EngineCapabilities) -> bytes:
        """Float32 [embedding length], little-endian, of the last id. Raises EngineError."""
        check_text(ids, limits)
        row = self._cache.fresh_row(len(ids))
        if row is None:
            raise EngineError("memory", "the KV cache has no room for this text now")
        try:
            while len(ids) - row.length > EXACT_CHUNK:
                self._feed(row, ids, wanted=False)
            return self._feed(row, ids, wanted=True).hidden[0].astype("<f4").tobytes()
        finally:
            self._cache.drop(row)

    def _feed(self, row: Row, ids: Sequence[int], *, wanted: bool) -> Scores:
        begin = row.length
        end = begin + plan_fixed_chunk(len(ids) - begin, EXACT_CHUNK)
        embeddings = np.ascontiguousarray(self._embedding.lookup(ids[begin:end])[None])
        scores = self._graph.run(row.index, embeddings, [end], [end - begin - 1] if wanted else [])
        row.advance(end - begin)
        return scores
