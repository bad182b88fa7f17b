"""Texts to embed → ids, and an engine's pooled vectors → what goes over the socket. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.text.tokenizer import Tokenizer
from backends.types import Embed, Embedded, EngineError

_NORM_FLOOR = 1e-12


def passage_ids(tokenizer: Tokenizer, embed: Embed, limit: int) -> tuple[tuple[int, ...], ...]:
    """Ids of each text, special ids included, at most `limit`. Raises EngineError("too_long")."""
    wanted = min(embed.context_length, limit) if embed.context_length > 0 else limit
    return tuple(_passage(tokenizer, text, wanted, embed.truncate) for text in embed.texts)


def _passage(tokenizer: Tokenizer, text: str, limit: int, truncate: bool) -> tuple[int, ...]:
    before, after = tokenizer.passage_frame()
    ids = tokenizer.encode(text)
    ids = ids[len(before) :] if before and ids[: len(before)] == before else ids
    ids = ids[: -len(after)] if after and ids[-len(after) :] == after else ids
    room = limit - len(before) - len(after)
    if len(ids) > room:
        if not truncate:
            raise EngineError("too_long", "the input length exceeds the context length")
        if room <= 0:
            message = "input after truncation exceeds maximum context length"
            raise EngineError("too_long", message)
        ids = ids[:room]
    return (*before, *ids, *after)


def embedded(embed: Embed, vectors: Sequence[bytes], prompt_tokens: int) -> Embedded:
    """Normalised and shortened as asked; JSON with the shortest digits of each float32."""
    finished = [_finish(np.frombuffer(vector, dtype="<f4"), embed) for vector in vectors]
    return Embedded(
        request_id=embed.request_id,
        vectors=tuple(vector.tobytes() for vector in finished),
        json=tuple(_json(vector) for vector in finished),
        prompt_tokens=prompt_tokens,
    )


def _finish(vector: np.ndarray, embed: Embed) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise EngineError("invalid", "embedding contains NaN or Inf values")
    if 0 < embed.dimensions < len(vector):
        vector = vector[: embed.dimensions]
    if embed.normalize:
        wide = vector.astype(np.float64)
        vector = wide / max(float(np.linalg.norm(wide)), _NORM_FLOOR)
    return vector.astype("<f4")


def _json(vector: np.ndarray) -> bytes:
    return b"[" + ",".join(vector.astype("U").tolist()).encode("ascii") + b"]"
