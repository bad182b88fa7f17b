"""Pauses: an engine that has something to do in them gets them, and work goes first."""

from __future__ import annotations

import queue

import pytest

from backends.types import GenerateRequest, Load
from backends.worker import engine_thread
from backends.worker.engine_thread import Add, EngineLoaded, EngineThread, Report, Stepped
from tests.backends.worker.tiny_backend import TinyEngine


class Resting(TinyEngine):
    """Has three things to do in a pause."""

    def __init__(self) -> None:
        super().__init__("")
        self.left = 3
        self.rested: queue.SimpleQueue[int] = queue.SimpleQueue()

    def rest(self) -> bool:
        self._check_thread()
        assert not self.has_work()
        if not self.left:
            return False
        self.left -= 1
        self.rested.put(self.left)
        return True


class RestingBackend:
    name, target = "resting", "none"

    def __init__(self) -> None:
        self.made: queue.SimpleQueue[Resting] = queue.SimpleQueue()

    def load(self, load: Load) -> Resting:
        engine = Resting()
        self.made.put(engine)
        return engine


def test_an_engine_rests_in_pauses_until_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "REST_AFTER_SECONDS", 0.01)
    backend, reports = RestingBackend(), queue.SimpleQueue[Report]()
    load = Load(request_id="l", backend="resting", artifact="/nowhere")
    thread = EngineThread(lambda: backend, load, reports.put)
    engine = backend.made.get(timeout=10)
    assert [engine.rested.get(timeout=10) for _ in range(3)] == [2, 1, 0]
    engine.left = 1
    thread.put(Add(GenerateRequest(request_id="a", prompt_ids=(1, 2), max_tokens=2)))
    assert engine.rested.get(timeout=10) == 0
    assert isinstance(reports.get(timeout=10), EngineLoaded)
    assert isinstance(reports.get(timeout=10), Stepped)
    assert thread.close(10)
