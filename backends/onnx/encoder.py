"""The engine for models that give vectors: padded batches of whole texts, one run each, no cache.

The graph's contract: `OnnxGraph` in converters.artifact. Generates nothing: a request to do so fails
by name. Never called from two threads.
"""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.engine.contract import EngineCapabilities
from backends.engine.vector_loop import VectorLoop
from backends.onnx.embedding import EmbeddingTable, input_table
from backends.onnx.rope import rotary_inputs
from backends.types import EngineError, Load
from converters.artifact import Artifact, OnnxGraph


class SessionVectors(VectorLoop):
    """Vectors by one session, a run for each group of texts."""

    def __init__(self, session: ort.InferenceSession, capabilities: EngineCapabilities) -> None:
        super().__init__(capabilities)
        self._session: ort.InferenceSession | None = session

    @abc.abstractmethod
    def _run(
        self, session: ort.InferenceSession, texts: Sequence[tuple[int, ...]]
    ) -> NDArray[np.float32]:
        """Float32 [texts, width]."""

    def _is_loaded(self) -> bool:
        return self._session is not None

    def _vectors(self, texts: Sequence[tuple[int, ...]]) -> list[bytes]:
        assert self._session is not None
        return [vector.astype("<f4").tobytes() for vector in self._run(self._session, texts)]

    def _outputs(
        self, session: ort.InferenceSession, names: list[str], feeds: Mapping[str, np.ndarray]
    ) -> Sequence[Any]:
        try:
            return session.run(names, dict(feeds))
        except Exception as error:
            # The runtime raises several unrelated classes; the batch failed, nothing else did.
            raise EngineError("internal", f"the model run failed: {error}") from error

    def close(self) -> None:
        self._session = None


class OnnxEncoder(SessionVectors):
    """`Engine` of backends.types; made by `backends.onnx.loading`."""

    def __init__(
        self,
        *,
        session: ort.InferenceSession,
        embedding: EmbeddingTable,
        artifact: Artifact,
        capabilities: EngineCapabilities,
    ) -> None:
        super().__init__(session, capabilities)
        self._embedding = embedding
        self._is_pooled = bool(artifact.pooling)
        self._tables = rotary_inputs(
            artifact, capabilities.context_length, capabilities.context_length
        )
        known = {"inputs_embeds", "lengths", *self._tables}
        wrong = known ^ {value.name for value in session.get_inputs()}
        if wrong:
            names = ", ".join(sorted(wrong))
            raise EngineError("load", f"graph and artifact disagree about the inputs {names}")

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


def make_encoder(
    session: ort.InferenceSession,
    load: Load,
    folder: pathlib.Path,
    artifact: Artifact,
    onnx: OnnxGraph,
    *,
    device: str = "cpu",
    device_bytes: int = 0,
) -> OnnxEncoder:
    """Its context is what the model was trained for, whatever rows are asked for."""
    return OnnxEncoder(
        session=session,
        embedding=input_table(folder, onnx),
        artifact=artifact,
        capabilities=EngineCapabilities(
            context_length=artifact.context_length or load.context_length,
            rows=1,
            vocabulary=artifact.vocabulary,
            generate=False,
            embed=True,
            adapters=True,
            device=device,
            device_bytes=device_bytes,
        ),
    )


def means(hidden: NDArray[np.float32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    """[texts, width] of hidden states [texts, ids, width], padding left out."""
    lines = [text[:length].mean(axis=0) for text, length in zip(hidden, lengths, strict=True)]
    return np.stack(lines).astype(np.float32)
