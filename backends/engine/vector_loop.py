"""What every engine of vectors does with its texts, whatever the runtime: checked, grouped, put in order.

Such an engine generates nothing: a request to do so fails by name. Nothing lives on between calls.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from backends.engine.contract import EngineCapabilities, EngineStatus
from backends.engine.texts import MAX_RUN_IDS, check_text, plan_runs
from backends.types import EngineError, Failed, GenerateRequest, RequestId, TokenEvent


class VectorLoop(abc.ABC):
    """The part of `Engine` that is the same for all models that give vectors."""

    def __init__(self, capabilities: EngineCapabilities) -> None:
        self.capabilities = capabilities
        self._closing: list[TokenEvent] = []
        self._steps = 0

    @abc.abstractmethod
    def _is_loaded(self) -> bool: ...

    @abc.abstractmethod
    def _vectors(self, texts: Sequence[tuple[int, ...]]) -> Sequence[bytes]:
        """Float32 little-endian, one for each text, of one run. Raises EngineError."""

    @abc.abstractmethod
    def close(self) -> None: ...

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        """Texts of like length share a run, so little of it is padding. Raises EngineError."""
        if not self._is_loaded():
            raise EngineError("internal", "the model has been unloaded")
        for ids in batch:
            check_text(ids, self.capabilities)
        vectors: dict[int, bytes] = {}
        for places in plan_runs([len(ids) for ids in batch], MAX_RUN_IDS):
            self._steps += 1
            found = self._vectors([batch[place] for place in places])
            vectors |= dict(zip(places, found, strict=True))
        return [vectors[place] for place in range(len(batch))]

    def add(self, request: GenerateRequest) -> None:
        message = "this model gives vectors and does not generate text"
        failure = Failed(request_id=request.request_id, code="unsupported", message=message)
        self._closing.append(failure)

    def step(self) -> list[TokenEvent]:
        events, self._closing = self._closing, []
        return events

    def cancel(self, request_id: RequestId) -> None:  # noqa: B027  (not for others to fill)
        """Nothing lives on between calls."""

    def has_work(self) -> bool:
        return bool(self._closing)

    def status(self) -> EngineStatus:
        return EngineStatus(active=0, waiting=0, kv_bytes=0, steps=self._steps)
