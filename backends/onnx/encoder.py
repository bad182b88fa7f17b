"""The engine for models that give vectors: padded batches of whole texts, one run each, no cache.

The graph's contract: `OnnxGraph` in converters.artifact. Generates nothing: a request to do so fails
by name. Never called from two threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.engine.contract import EngineCapabilities, EngineStatus
from backends.engine.texts import MAX_RUN_IDS, check_text, plan_runs
from backends.onnx.binding import rotary_inputs
from backends.onnx.embedding import EmbeddingTable
from backends.types import (
    EngineError,
    Failed,
    GenerateRequest,
    TokenEvent,
)
from converters.artifact import Artifact


class OnnxEncoder:
    """`Engine` of backends.types; made by `backends.onnx.loading`."""

    def __init__(
        self,
        *,
        session: ort.InferenceSession,
        embedding: EmbeddingTable,
        artifact: Artifact,
        capabilities: EngineCapabilities,
    ) -> None:
        self._start(session, capabilities)
        self._embedding = embedding
        self._is_pooled = bool(artifact.pooling)
        self._tables = rotary_inputs(artifact, capabilities.context_length)
        known = {"inputs_embeds", "lengths", *self._tables}
        wrong = known ^ {value.name for value in session.get_inputs()}
        if wrong:
            names = ", ".join(sorted(wrong))
            raise EngineError("load", f"graph and artifact disagree about the inputs {names}")

    def _start(self, session: ort.InferenceSession, capabilities: EngineCapabilities) -> None:
        self.capabilities = capabilities
        self._session: ort.InferenceSession | None = session
        self._closing: list[TokenEvent] = []
        self._steps = 0

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        """Texts of like length share a run, so little of it is padding. Raises EngineError."""
        if self._session is None:
            raise EngineError("internal", "the model has been unloaded")
        for ids in batch:
            check_text(ids, self.capabilities)
        vectors: dict[int, bytes] = {}
        for places in plan_runs([len(ids) for ids in batch], MAX_RUN_IDS):
            found = self._run(self._session, [batch[place] for place in places])
            vectors |= dict(
                zip(places, (vector.astype("<f4").tobytes() for vector in found), strict=True)
            )
        return [vectors[place] for place in range(len(batch))]

    def _run(
        self, session: ort.InferenceSession, texts: Sequence[tuple[int, ...]]
    ) -> NDArray[np.float32]:
        """Float32 [texts, width]."""
        lengths = np.array([len(ids) for ids in texts], np.int32)
        padded = np.zeros((len(texts), int(lengths.max())), np.int64)
        for line, ids in zip(padded, texts, strict=True):
            line[: len(ids)] = ids
        embeddings = self._embedding.lookup(padded.reshape(-1)).reshape(*padded.shape, -1)
        inputs = {"inputs_embeds": embeddings, "lengths": lengths}
        output = "pooled" if self._is_pooled else "hidden"
        (found,) = self._outputs(session, [output], {**inputs, **self._tables})
        vectors: NDArray[np.float32] = np.asarray(found, np.float32)
        return vectors if self._is_pooled else means(vectors, lengths)

    def _outputs(
        self, session: ort.InferenceSession, names: list[str], feeds: Mapping[str, np.ndarray]
    ) -> Sequence[Any]:
        self._steps += 1
        try:
            return session.run(names, dict(feeds))
        except Exception as error:
            # The runtime raises several unrelated classes; the batch failed, nothing else did.
            raise EngineError("internal", f"the model run failed: {error}") from error

    # ---- the rest of the contract ----

    def add(self, request: GenerateRequest) -> None:
        message = "this model gives vectors and does not generate text"
        failure = Failed(request_id=request.request_id, code="unsupported", message=message)
        self._closing.append(failure)

    def step(self) -> list[TokenEvent]:
        events, self._closing = self._closing, []
        return events

    def cancel(self, request_id: str) -> None:
        """Nothing lives on between calls."""

    def has_work(self) -> bool:
        return bool(self._closing)

    def status(self) -> EngineStatus:
        return EngineStatus(active=0, waiting=0, kv_bytes=0, steps=self._steps)

    def close(self) -> None:
        self._session = None


def means(hidden: NDArray[np.float32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    """[texts, width] of hidden states [texts, ids, width], padding left out."""
    lines = [text[:length].mean(axis=0) for text, length in zip(hidden, lengths, strict=True)]
    return np.stack(lines).astype(np.float32)
