"""Texts of all requests for embeddings, cut into slices of like length for the engine.

Owned by the engine thread. A slice takes no longer than SLICE_SECONDS at the rate measured last, so
that a client who generates, or whose texts are few, does not wait for somebody's thousands.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from backends.types import RequestId

SLICE_SECONDS = 0.2
MIN_SLICE_IDS = 512
MAX_SLICE_IDS = 16_384

Ids = tuple[int, ...]


class Slice(NamedTuple):
    """Texts to run now, and whose they are: (request, place in its batch)."""

    owners: list[tuple[RequestId, int]]
    batch: list[Ids]

    @property
    def padded_ids(self) -> int:
        return len(self.batch) * max(map(len, self.batch))


class EmbedQueue:
    def __init__(self) -> None:
        # One entry per text: (length, request, place), by length.
        self._waiting: list[tuple[int, RequestId, int]] = []
        self._batches: dict[RequestId, Sequence[Ids]] = {}
        self._vectors: dict[RequestId, dict[int, bytes]] = {}
        self._slice_ids = MIN_SLICE_IDS

    def has_work(self) -> bool:
        return bool(self._batches)

    def add(self, request_id: RequestId, batch: Sequence[Ids]) -> None:
        self._batches[request_id] = batch
        self._vectors[request_id] = {}
        for place, ids in enumerate(batch):
            bisect.insort(self._waiting, (len(ids), request_id, place))

    def cancel(self, request_id: RequestId) -> bool:
        """Whether it was known; what is running for it is thrown away."""
        if self._batches.pop(request_id, None) is None:
            return False
        del self._vectors[request_id]
        self._waiting = [entry for entry in self._waiting if entry[1] != request_id]
        return True

    def next_slice(self) -> Slice:
        """The longest text that is left of the oldest request, and texts of anybody near its length."""
        oldest = next(iter(self._batches))
        first = max(place for place, entry in enumerate(self._waiting) if entry[1] == oldest)
        longest = max(1, self._waiting[first][0])
        begin = max(0, first + 1 - max(1, self._slice_ids // longest))
        taken = self._waiting[begin : first + 1]
        del self._waiting[begin : first + 1]
        owners = [(request_id, place) for _, request_id, place in taken]
        return Slice(owners, [self._batches[name][place] for name, place in owners])

    def done(
        self, part: Slice, vectors: Sequence[bytes], seconds: float
    ) -> list[tuple[RequestId, list[bytes]]]:
        """The requests that are whole now, their vectors in the order of their texts."""
        rate = part.padded_ids / max(seconds, 1e-6)
        self._slice_ids = int(min(max(rate * SLICE_SECONDS, MIN_SLICE_IDS), MAX_SLICE_IDS))
        for (request_id, place), vector in zip(part.owners, vectors, strict=True):
            if request_id in self._vectors:
                self._vectors[request_id][place] = vector
        finished: list[tuple[RequestId, list[bytes]]] = []
        for request_id in dict(part.owners):
            found = self._vectors.get(request_id)
            if found is not None and len(found) == len(self._batches[request_id]):
                finished.append((request_id, [found[place] for place in range(len(found))]))
                self.cancel(request_id)
        return finished
