"""The engine for another program's encoder: ids and a mask in, hidden states out, pooled here.

The graph's contract: `ForeignGraph` in converters.artifact. Otherwise as `OnnxEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.engine.contract import EngineCapabilities
from backends.onnx.encoder import SessionVectors, means
from backends.types import EngineError
from converters.artifact import Artifact, ForeignGraph


class ForeignEncoder(SessionVectors):
    """`Engine` of backends.types; made by `backends.onnx.loading`."""

    def __init__(
        self,
        *,
        session: ort.InferenceSession,
        artifact: Artifact,
        graph: ForeignGraph,
        capabilities: EngineCapabilities,
    ) -> None:
        super().__init__(session, capabilities)
        self._graph = graph
        self._pooling = artifact.pooling
        self._padding_id = max(0, artifact.special.padding_id)
        if {value.name for value in session.get_inputs()} != set(graph.inputs):
            raise EngineError("load", "graph and artifact disagree about the inputs")

    def _run(
        self, session: ort.InferenceSession, texts: Sequence[tuple[int, ...]]
    ) -> NDArray[np.float32]:
        """Float32 [texts, width]."""
        lengths = np.array([len(ids) for ids in texts], np.int32)
        ids = np.full((len(texts), int(lengths.max())), self._padding_id, np.int64)
        for line, text in zip(ids, texts, strict=True):
            line[: len(text)] = text
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds = {name: given[name] for name in self._graph.inputs}
        (found,) = self._outputs(session, [self._graph.output], feeds)
        hidden = np.asarray(found, np.float32)
        if self._pooling == "mean":
            return means(hidden, lengths)
        if self._pooling == "last":
            return hidden[np.arange(len(texts)), lengths - 1]
        return hidden[:, 0]
