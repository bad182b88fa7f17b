"""What the ONNX engine feeds where images lie: their vectors in the place of rows of the table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backends.engine.positions import layout_of
from backends.image_span import ImageSpan
from backends.onnx.bidirectional import BidirectionalRuns
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.image_tables import ImageTables, ImageTableStore
from backends.types import EngineError, GenerateRequest
from converters.artifact import Artifact


class ImageInputs:
    """`width`: numbers of an image's vector, 0 where the model cannot be given any."""

    def __init__(
        self,
        artifact: Artifact,
        table: EmbeddingTable,
        bidirectional: BidirectionalRuns,
        *,
        capacity: int,
        word: str = "cpu",
    ) -> None:
        """`capacity`: positions that a row may have; `word`: the runtime's name for the device."""
        self.bidirectional = bidirectional
        onnx = artifact.onnx
        self._tables = ImageTableStore(artifact, capacity=capacity, word=word)
        self._table = table
        self._scale = _vector_scale(artifact)
        self._has_block_inputs = onnx is not None and onnx.per_block is not None
        self.width = onnx.input_width if onnx is not None else 0

    def check(self, request: GenerateRequest) -> None:
        """Raises EngineError("unsupported") for images that this model cannot take."""
        if not request.images:
            return
        if self._has_block_inputs:
            raise EngineError(
                "unsupported", "images are not supported for models whose blocks have own inputs"
            )
        if self.bidirectional.obstacle and any(_is_open(span) for span in request.images):
            raise EngineError("unsupported", self.bidirectional.obstacle)

    def tables(self, request: GenerateRequest) -> ImageTables | None:
        """What the request's row needs in the place of the common rotary tables."""
        return self._tables.tables(layout_of(request.images))

    def embeddings(
        self, ids: Sequence[int], begin: int, end: int, images: Sequence[ImageSpan] = ()
    ) -> NDArray[np.float32]:
        """Float32 [end - begin, input width] of the positions from `begin` on."""
        fed = [span for span in images if span.start < end and span.start + span.length > begin]
        wanted = np.array(ids[begin:end], np.int64)
        if not fed:
            return self._table.lookup(wanted)
        values = self._table.lookup(np.maximum(wanted, 0))  # those of images are written over
        for span in fed:
            first, last = max(span.start, begin), min(span.start + span.length, end)
            vectors = np.frombuffer(span.embeddings, "<f4").reshape(span.length, -1)
            values[first - begin : last - begin] = vectors[first - span.start : last - span.start]
            if self._scale != 1:
                values[first - begin : last - begin] *= self._scale
        return values


def _is_open(span: ImageSpan) -> bool:
    """Whether a causal run would give something else."""
    return span.is_bidirectional and span.length > 1


def open_span(images: Sequence[ImageSpan], place: int) -> ImageSpan | None:
    """The image that begins at `place` and whose positions see each other: it is one run."""
    return next((span for span in images if _is_open(span) and span.start == place), None)


def causal_left(images: Sequence[ImageSpan], place: int, left: int) -> int:
    """How many of the `left` positions from `place` on come before the next such image."""
    starts = [span.start for span in images if _is_open(span) and span.start >= place]
    return min(left, min(starts) - place) if starts else left


def _vector_scale(artifact: Artifact) -> np.float32:
    """As llama.cpp: a factor for embeddings is also that of vectors, but Gemma's is of the table."""
    if artifact.onnx is None or artifact.architecture.startswith("gemma"):
        return np.float32(1)
    return np.float32(artifact.onnx.embedding_scale)
