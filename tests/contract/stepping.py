"""Requests, stepping an engine, and what must hold of the events of one request."""

from __future__ import annotations

from backends.engine.contract import Engine
from backends.types import (
    Failed,
    Finished,
    GenerateRequest,
    Prefilled,
    Sampled,
    Sampling,
    TokenEvent,
    Usage,
)

ROWS, CONTEXT = 3, 400
LONG_PROMPT = tuple(20 + i % 200 for i in range(300))


def request(
    request_id: str,
    prompt: tuple[int, ...] = (104, 105, 33),
    max_tokens: int = 12,
    **fields,
) -> GenerateRequest:
    fields.setdefault("sampling", Sampling(temperature=0.9, seed=11))
    return GenerateRequest(
        request_id=request_id, prompt_ids=prompt, max_tokens=max_tokens, **fields
    )


def run(engine: Engine, limit: int = 3000) -> dict[str, list[TokenEvent]]:
    """Steps until there is nothing left to do; events by request."""
    events: dict[str, list[TokenEvent]] = {}
    for _ in range(limit):
        if not engine.has_work():
            return events
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    raise AssertionError("the engine never came to an end")


def step_until(engine: Engine, kind: type, request_id: str) -> list[TokenEvent]:
    seen: list[TokenEvent] = []
    for _ in range(3000):
        seen += engine.step()
        if any(isinstance(event, kind) and event.request_id == request_id for event in seen):
            return seen
    raise AssertionError(f"no {kind.__name__} for {request_id}")


def sampled(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Sampled)]


def check_order(events: list[TokenEvent]) -> Finished | Failed:
    """Prefilled* Sampled* and then exactly one end; returns the end."""
    ranks = {Prefilled: 0, Sampled: 1, Finished: 2, Failed: 2}
    order = [ranks[type(event)] for event in events]
    assert order == sorted(order)
    assert order.count(2) == 1
    end = events[-1]
    assert isinstance(end, Finished | Failed)
    return end


def finish(events: list[TokenEvent]) -> Finished:
    end = check_order(events)
    assert isinstance(end, Finished), end
    return end


def usage_of(events: list[TokenEvent]) -> Usage:
    return finish(events).usage
