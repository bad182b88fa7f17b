"""A backend for worker tests: counts its threads, has embeddings, breaks when its folder says so."""

from __future__ import annotations

import pathlib
import struct
import sys
import threading
import time
from collections.abc import Sequence

from backends.engine.contract import EngineCapabilities, EngineStatus
from backends.types import (
    EngineError,
    Finished,
    GenerateRequest,
    Load,
    RequestId,
    Sampled,
    TokenEvent,
    Usage,
)


class TinyEngine:
    """Says the prompt's ids back, one per step, for ever; only a cancel or max_tokens ends it."""

    def __init__(self, mood: str) -> None:
        self._mood = mood
        self._thread = threading.get_ident()
        self._living: dict[RequestId, tuple[GenerateRequest, int]] = {}
        self._closing: list[TokenEvent] = []
        self._steps = 0
        self.capabilities = EngineCapabilities(
            context_length=64, rows=4, vocabulary=258, embed=True
        )

    def _check_thread(self) -> None:
        assert threading.get_ident() == self._thread

    def add(self, request: GenerateRequest) -> None:
        self._check_thread()
        self._living[request.request_id] = (request, 0)

    def step(self) -> list[TokenEvent]:
        self._check_thread()
        self._steps += 1
        if self._mood == "break" and self._steps > 3:
            raise ValueError("the tiny engine broke")
        if self._mood == "stuck" and self._steps > 3:
            time.sleep(3600)
        events, self._closing = self._closing, []
        for request_id, (request, said) in list(self._living.items()):
            if said == request.max_tokens:
                self.cancel(request_id)
                continue
            token_id = request.prompt_ids[said % len(request.prompt_ids)]
            self._living[request_id] = (request, said + 1)
            events.append(Sampled(request_id=request_id, token_id=token_id, logprob=-0.5))
        time.sleep(0.001)
        return events

    def cancel(self, request_id: RequestId) -> None:
        self._check_thread()
        known = self._living.pop(request_id, None)
        if known is not None:
            usage = Usage(prompt_tokens=len(known[0].prompt_ids), completion_tokens=known[1])
            reason = "length" if known[1] == known[0].max_tokens else "cancelled"
            self._closing.append(Finished(request_id=request_id, reason=reason, usage=usage))

    def has_work(self) -> bool:
        return bool(self._living or self._closing)

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        self._check_thread()
        if any(bytes(i for i in ids if i < 256) == b"bad" for ids in batch):
            raise EngineError("invalid", "a bad text")
        return [struct.pack("<4f", 3.0, 4.0, 0.0, len(ids)) for ids in batch]

    def status(self) -> EngineStatus:
        return EngineStatus(active=len(self._living), waiting=0, kv_bytes=7, steps=self._steps)

    def close(self) -> None:
        self._check_thread()
        print("the tiny engine is closed", flush=True)


class TinyBackend:
    name = "tiny"
    target = "tiny"

    def load(self, load: Load) -> TinyEngine:
        mood = (pathlib.Path(load.artifact) / "mood").read_text()
        if mood == "unloadable":
            raise EngineError("memory", "the tiny engine needs more")
        return TinyEngine(mood)


backend = TinyBackend()


if __name__ == "__main__":
    from backends.worker.__main__ import main

    main(sys.argv[1:], {"tiny": "tests.backends.worker.tiny_backend"})
