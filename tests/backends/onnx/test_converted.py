"""The engine on what the converter really writes, for block types with and without mins."""

from __future__ import annotations

import pathlib

import pytest

from backends.engine.contract import Engine
from backends.onnx import backend
from backends.types import (
    Finished,
    GenerateRequest,
    Load,
    Prefilled,
    Sampled,
    Sampling,
    TokenEvent,
)
from converters.convert import Request, convert
from converters.progress import Progress
from tests.models.random_gguf import make_gguf

PROMPT = tuple(3 + (i * 11) % 600 for i in range(150))


@pytest.fixture(scope="module", params=["llama-Q4_K_M", "qwen2-Q8_0", "llama-Q4_0"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    architecture, types = request.param.split("-")
    folder = tmp_path_factory.mktemp("converted")
    path = make_gguf(folder / "m.gguf", architecture=architecture, types=types)
    wanted = Request(source="0" * 64, target="onnx-cpu", final=folder / "artifact")
    with path.open("rb") as file:
        convert(file, wanted, Progress())
    return wanted.final


def load(artifact: pathlib.Path) -> Engine:
    return backend.load(
        Load(
            request_id="l", backend="onnx", artifact=str(artifact), rows=3, context_length=256,
            threads=1,
        )
    )  # fmt: skip


def request(name: str, prompt: tuple[int, ...], **fields) -> GenerateRequest:
    return GenerateRequest(
        request_id=name, prompt_ids=prompt, max_tokens=20, sampling=Sampling(**fields)
    )


def run(engine: Engine) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work():
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    return events


def ids_of(events: list[TokenEvent]) -> list[int]:
    assert isinstance(events[-1], Finished), events[-1]
    return [event.token_id for event in events if isinstance(event, Sampled)]


def test_batch_equals_alone_greedy_and_seeded(artifact: pathlib.Path):
    engine = load(artifact)
    requests = [
        request("greedy", PROMPT, temperature=0.0, seed=1),
        request("seeded", PROMPT[:40], temperature=1.0, seed=3),
        request("penalised", PROMPT[:7], temperature=0.8, seed=4, repeat_penalty=1.3),
    ]
    alone: dict[str, list[int]] = {}
    for one in requests:
        engine.add(one)
        alone |= {name: ids_of(events) for name, events in run(engine).items()}
    for one in requests:
        engine.add(one)
    assert {name: ids_of(events) for name, events in run(engine).items()} == alone


def test_the_size_of_the_chunks_changes_nothing(artifact: pathlib.Path):
    engine = load(artifact)
    found = {}
    for size in (32, 64, 512):
        engine._cache.clear()  # type: ignore[attr-defined]
        engine._pace.chunk = lambda left, size=size, **_: min(left, size)  # type: ignore[attr-defined]
        engine.add(request("a", PROMPT, temperature=0.0))
        events = run(engine)["a"]
        assert sum(isinstance(event, Prefilled) for event in events) == -(-len(PROMPT) // size)
        found[size] = ids_of(events)
    assert found[32] == found[64] == found[512]
