"""What tests of the ONNX engine share: loading one, running it dry, and watching its runs."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from backends.onnx import backend
from backends.onnx.engine import OnnxEngine
from backends.onnx.scores import Scores
from backends.types import (
    Finished,
    GenerateRequest,
    Load,
    Prefilled,
    Sampled,
    Sampling,
    TokenEvent,
    Usage,
)
from tests.backends.onnx.tiny_artifact import CONTEXT

GREEDY = Sampling(temperature=0.0)
# A seed makes a request exact: it takes neither guesses nor positions that round differently.
EXACT = Sampling(temperature=0.0, seed=1)
POSITION_BYTES = 2 * 2 * 2 * 16 * 4


def load(folder: pathlib.Path, **fields) -> OnnxEngine:
    wanted: dict[str, Any] = {"rows": 4, "context_length": CONTEXT, "threads": 1} | fields
    engine = backend.load(Load(request_id="l", backend="onnx", artifact=str(folder), **wanted))
    assert isinstance(engine, OnnxEngine)
    return engine


def ask(request_id: str, ids: Iterable[int], max_tokens: int = 8, **fields) -> GenerateRequest:
    fields.setdefault("sampling", GREEDY)
    return GenerateRequest(
        request_id=request_id, prompt_ids=tuple(ids), max_tokens=max_tokens, **fields
    )


def run(engine: OnnxEngine) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    for _ in range(20_000):
        if not engine.has_work():
            return events
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    raise AssertionError("the engine never came to an end")


def answer(engine: OnnxEngine, request: GenerateRequest) -> tuple[list[int], Usage]:
    """Runs one request to its end, alone."""
    engine.add(request)
    events = run(engine)[request.request_id]
    return ids_of(events), usage_of(events)


def ids_of(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Sampled)]


def usage_of(events: list[TokenEvent]) -> Usage:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].usage


def step_until_sampled(engine: OnnxEngine, request_id: str) -> list[TokenEvent]:
    seen: list[TokenEvent] = []
    while not any(isinstance(e, Sampled) and e.request_id == request_id for e in seen):
        seen += engine.step()
    return seen


def prefilled_ids(events: list[TokenEvent]) -> int:
    """Ids that were really fed before the first sampled one."""
    progress = [event for event in events if isinstance(event, Prefilled)]
    return progress[-1].done - progress[-1].cached


class Watch:
    """Records (rows, ids a row) of every run, and the logits it gave."""

    def __init__(self, engine: OnnxEngine) -> None:
        graph = engine._graph
        assert graph is not None
        self._inner = graph.run
        self.shapes: list[tuple[int, int]] = []
        self.logits: list[np.ndarray] = []
        graph.run = self._run  # type: ignore[method-assign]

    def _run(self, first: int, embeddings: np.ndarray, totals, wanted, tables=None) -> Scores:
        self.shapes.append(embeddings.shape[:2])
        scores = self._inner(first, embeddings, totals, wanted, tables)
        self.logits += [scores.logits[place].copy() for place in range(len(wanted))]
        return scores
