"""MLX engines on tiny models of every kind of cache, and how tests drive them."""

from __future__ import annotations

import pathlib
from typing import Any

from backends.mlx.engine import MlxEngine
from backends.mlx.loading import load_engine
from backends.types import GenerateRequest, Load, Sampled, Sampling, TokenEvent
from tests.backends.mlx.tiny_mlx import HYBRID, LLAMA, WINDOWS

KINDS: dict[str, dict[str, Any]] = {"llama": LLAMA, "windows": WINDOWS, "hybrid": HYBRID}


def load_tiny(folder: pathlib.Path, *, has_batches: bool = True, **fields: Any) -> MlxEngine:
    fields = {"rows": 4, "context_length": 400} | fields
    load = Load(request_id="load", backend="mlx", artifact=str(folder), **fields)
    engine = load_engine(load, has_batches=has_batches)
    assert isinstance(engine, MlxEngine)
    return engine


def greedy(name: str, prompt: tuple[int, ...], count: int = 12, **fields: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id=name, prompt_ids=prompt, max_tokens=count,
        sampling=Sampling(temperature=0.0), **fields,
    )  # fmt: skip


def prompt_of(length: int, start: int = 20) -> tuple[int, ...]:
    return tuple(start + (i * i + 3 * i) % 211 for i in range(length))


def run(engine: MlxEngine) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work():
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    return events


def answers(engine: MlxEngine, *requests: GenerateRequest) -> dict[str, list[int]]:
    """All at once; the ids of each."""
    for request in requests:
        engine.add(request)
    return {name: ids_of(events) for name, events in run(engine).items()}


def ids_of(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Sampled)]
