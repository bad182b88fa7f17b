"""Vectors of texts from causal models: the last hidden state, or what the model pools.

Nothing is kept of a text. Padding on the right is harmless: what is causal does not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

from backends.engine.contract import EngineCapabilities
from backends.engine.pace import EXACT_CHUNK
from backends.engine.texts import check_text
from backends.engine.vector_loop import VectorLoop
from backends.mlx import mlx_lm_internals as internals
from backends.types import EngineError


def last_hidden(model: nn.Module, ids: Sequence[int], limits: EngineCapabilities) -> bytes:
    """Float32 [embedding length], little-endian, of the last id. Raises EngineError."""
    check_text(ids, limits)
    body, caches = internals.body_of(model), internals.make_caches(model)
    if body is None:
        raise EngineError("unsupported", "this model's hidden states are not known")
    hidden = mx.zeros(0)
    for start in range(0, len(ids), EXACT_CHUNK):
        hidden = body(mx.array([ids[start : start + EXACT_CHUNK]]), cache=caches)[0, -1]
        internals.evaluate(caches, hidden)
    return _as_bytes(hidden)


def _as_bytes(vector: mx.array) -> bytes:
    return np.array(vector.astype(mx.float32), "<f4").tobytes()


# Vectors of texts that fill one run together.
Run = Callable[[Sequence[tuple[int, ...]]], Sequence[bytes]]


def pooled_by(model: nn.Module, pooling: str) -> Run:
    """What a causal model's last states are pooled to; its module must have them."""
    body = internals.body_of(model)
    if body is None:
        raise EngineError("unsupported", "this model's hidden states are not known")

    def run(texts: Sequence[tuple[int, ...]]) -> list[bytes]:
        longest = max(map(len, texts))
        hidden = body(mx.array([[*ids, *[0] * (longest - len(ids))] for ids in texts]))
        lines = zip(hidden, texts, strict=True)
        return [_as_bytes(pooled(line[: len(ids)], pooling)) for line, ids in lines]

    return run


class MlxVectors(VectorLoop):
    """`Engine` of backends.types for models that give vectors; made by `backends.mlx.loading`."""

    def __init__(self, *, run: Run, capabilities: EngineCapabilities) -> None:
        super().__init__(capabilities)
        self._run: Run | None = run

    def _is_loaded(self) -> bool:
        return self._run is not None

    def _vectors(self, texts: Sequence[tuple[int, ...]]) -> Sequence[bytes]:
        assert self._run is not None
        return self._run(texts)

    def close(self) -> None:
        self._run = None
        mx.clear_cache()


def pooled(hidden: mx.array, pooling: str) -> mx.array:
    """[E] of the hidden states [S, E] of one text."""
    match pooling:
        case "last":
            return hidden[-1]
        case "cls":
            return hidden[0]
        case "mean":
            return hidden.astype(mx.float32).mean(axis=0)
    raise EngineError("unsupported", f"pooling {pooling!r} is not supported on MLX yet")
