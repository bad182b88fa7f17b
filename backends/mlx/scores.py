"""What one run says of its rows: the likeliest ids on the host, all logits only where asked for."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.engine.filters import likeliest
from backends.engine.sampling import Sampler

# Enough for the usual top_k of 40, and for what penalties move.
TOP = 64


class Line:
    """One row of `Scores`. `ids` int64 [k] and `values` float32 [k] are the k largest logits, likeliest
    first, equals by id; k may be 0 where many are equal.
    """

    def __init__(
        self, logits: mx.array, ids: NDArray[np.int64], values: NDArray[np.float32], lse: float
    ) -> None:
        self._logits = logits
        self._copied: NDArray[np.float32] | None = None
        self.ids = ids
        self.values = values
        self.lse = lse

    @property
    def logits(self) -> NDArray[np.float32]:
        """Float32 [vocabulary]."""
        if self._copied is None:
            self._copied = np.array(self._logits, np.float32)
        return self._copied

    def sample(self, sampler: Sampler) -> int:
        """Raises EngineError where a constraint fails or no logit is a number."""
        if self.ids.size:
            token_id = sampler.sample_top(self.ids, self.values, self.lse, self._logits.size)
            if token_id is not None:
                return token_id
        return sampler.sample(self.logits)

    def logprobs(
        self, token_id: int, wanted: int
    ) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        """Natural-log probabilities before any filter: of the chosen id and of the likeliest ones."""
        if wanted < 0:
            return None, ()
        ids, values = self.ids[:wanted], self.values[:wanted]
        if wanted > ids.size:
            ids, values = likeliest(self.logits, wanted)
        top = tuple((int(i), float(v) - self.lse) for i, v in zip(ids, values, strict=True))
        places = np.flatnonzero(self.ids == token_id)
        value = self.values[places[0]] if places.size else self.logits[token_id]
        return float(value) - self.lse, top


def read_scores(logits: mx.array, *, is_greedy: bool) -> list[Line]:
    """Runs what `logits` [rows, vocabulary] stands for. Greedy: one id a row is enough, mostly."""
    logits = logits.astype(mx.float32)
    lse = mx.logsumexp(logits, axis=-1)
    ids = _greatest(logits) if is_greedy else _likeliest(logits)
    values = mx.take_along_axis(logits, ids, axis=-1)
    mx.eval(logits, lse, ids, values)
    listed = zip(np.array(ids, np.int64), np.array(values), np.array(lse), strict=True)
    size = logits.shape[-1]
    return [
        Line(logits[place], *_ordered(ids, values, size), float(total))
        for place, (ids, values, total) in enumerate(listed)
    ]


def _greatest(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1, keepdims=True)


def _likeliest(logits: mx.array) -> mx.array:
    """One more than TOP, in no order: the last one says where the list ends."""
    if logits.shape[-1] <= TOP + 1:
        return mx.argsort(-logits, axis=-1)
    return mx.argpartition(-logits, kth=TOP, axis=-1)[..., : TOP + 1]


def _ordered(
    ids: NDArray[np.int64], values: NDArray[np.float32], vocabulary: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Likeliest first, equals by id. What equals the last is left out: unlisted ids may equal it too."""
    if ids.size == 1:
        return ids, values
    order = np.lexsort((ids, -values))
    ids, values = ids[order], values[order]
    if ids.size < vocabulary:
        kept = int((values > values[-1]).sum())
        return ids[:kept], values[:kept]
    return ids, values
