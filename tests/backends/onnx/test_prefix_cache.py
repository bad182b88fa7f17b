"""What is kept of finished requests: that it is found, that it changes no number, that it goes."""

from __future__ import annotations

import pathlib
import random

import numpy as np
import pytest

from backends.onnx import prefix_cache
from backends.onnx.engine import OnnxEngine
from backends.types import Finished, Sampling
from tests.backends.onnx.engine_rig import (
    EXACT,
    POSITION_BYTES,
    Watch,
    answer,
    ask,
    ids_of,
    load,
    run,
    step_until_sampled,
    usage_of,
)
from tests.backends.onnx.tiny_artifact import VOCABULARY, write_tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_artifact(folder)
    return folder


def text(seed: int, length: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(8, VOCABULARY) for _ in range(length)]


def test_a_full_hit_leaves_two_ids_to_run_and_changes_no_bit(artifact: pathlib.Path):
    engine = load(artifact)
    watch = Watch(engine)
    cold, usage = answer(engine, ask("a", text(1, 150), 20, sampling=EXACT))
    first, watch.logits = watch.logits, []
    warm, again = answer(engine, ask("b", text(1, 150), 20, sampling=EXACT))
    assert (usage.cached_tokens, again.cached_tokens, again.prompt_tokens) == (0, 148, 150)
    assert warm == cold
    assert all(np.array_equal(*pair) for pair in zip(first, watch.logits, strict=True))


def test_a_second_turn_feeds_only_what_is_new(artifact: pathlib.Path):
    engine = load(artifact)
    said, _ = answer(engine, ask("a", text(1, 100), 30))
    watch = Watch(engine)
    _, usage = answer(engine, ask("b", [*text(1, 100), *said, *text(2, 20)], 5))
    # The last sampled id was never fed.
    assert (usage.cached_tokens, usage.prompt_tokens) == (129, 150)
    assert sum(ids for _, ids in watch.shapes[:1]) == 21
    assert len(engine._cache) == 1


def test_a_seeded_second_turn_is_what_a_cold_engine_says(artifact: pathlib.Path):
    engine = load(artifact)
    said, _ = answer(engine, ask("a", text(1, 100), 30, sampling=EXACT))
    second = ask("b", [*text(1, 100), *said, *text(2, 20)], 30, sampling=EXACT)
    warm, usage = answer(engine, second)
    cold, _ = answer(load(artifact), second)
    assert warm == cold
    # What decoding wrote, one id a run, is not what prefilling writes.
    assert usage.cached_tokens == 100


def test_clients_share_a_system_prompt_while_the_first_still_talks(artifact: pathlib.Path):
    engine, system = load(artifact), text(1, 200)
    engine.add(ask("a", [*system, *text(2, 30)], 60))
    step_until_sampled(engine, "a")
    engine.add(ask("b", [*system, *text(3, 30)], 60))
    engine.add(ask("c", [*system, *text(4, 30)], 60))
    events = run(engine)
    assert [usage_of(events[name]).cached_tokens for name in "bc"] == [200, 200]
    for name, seed in (("b", 3), ("c", 4)):
        alone, _ = answer(load(artifact), ask(name, [*system, *text(seed, 30)], 60))
        assert ids_of(events[name]) == alone


def test_long_prefixes_are_copied_over_several_steps(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backends.onnx.engine.MOVE_BYTES", 50 * POSITION_BYTES)
    engine, system = load(artifact), text(1, 200)
    answer(engine, ask("a", [*system, *text(2, 90)]))
    watch = Watch(engine)
    wanted = ask("b", [*system, *text(3, 30)], 20, sampling=EXACT)
    engine.add(wanted)
    for _ in range(2):
        engine.step()
    assert watch.shapes == []  # two pieces are copied, nothing has run yet
    events = run(engine)["b"]
    assert usage_of(events).cached_tokens == 200
    assert ids_of(events) == answer(load(artifact), wanted)[0]


def test_a_source_that_goes_in_the_middle_of_a_copy_is_prefilled_instead(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backends.onnx.engine.MOVE_BYTES", 50 * POSITION_BYTES)
    engine, system = load(artifact), text(1, 200)
    answer(engine, ask("a", [*system, *text(2, 90)]))
    wanted = ask("b", [*system, *text(3, 30)], 20, sampling=EXACT)
    engine.add(wanted)
    engine.step()
    engine._cache.clear()
    events = run(engine)["b"]
    assert usage_of(events).cached_tokens == 50
    assert ids_of(events) == answer(load(artifact), wanted)[0]


def cached(engine: OnnxEngine, name: str, ids: list[int], scope: str, system: int) -> int:
    wanted = ask(name, ids, cache_scope=scope, system_length=system)
    return answer(engine, wanted)[1].cached_tokens


def test_nothing_crosses_scopes_but_whole_system_prompts(artifact: pathlib.Path):
    engine, system = load(artifact), text(1, 100)
    assert cached(engine, "a", [*system, *text(2, 50)], "key a", 100) == 0
    assert cached(engine, "b", [*system, *text(2, 50)], "key b", 100) == 100
    assert cached(engine, "c", [*system, *text(2, 50)], "key c", 0) == 0
    assert cached(engine, "d", [*system[:90], *text(2, 50)], "key d", 90) == 0
    assert cached(engine, "e", [*system, *text(2, 50)], "key a", 100) == 148


def test_another_conversation_is_not_lost_to_one_that_begins_alike(artifact: pathlib.Path):
    engine, system = load(artifact), text(1, 100)
    first = [*system, *text(2, 100)]
    for ids in (first, [*system, *text(3, 100)]):
        answer(engine, ask("x", ids))
    assert len(engine._cache) == 2
    assert answer(engine, ask("y", first))[1].cached_tokens == 198


def test_the_same_again_is_kept_once(artifact: pathlib.Path):
    engine = load(artifact)
    for _ in range(5):
        answer(engine, ask("x", text(1, 100), 20, sampling=EXACT))
    assert len(engine._cache) == 1


def test_kept_rows_stay_within_the_budget_and_yield_to_work(artifact: pathlib.Path):
    engine = load(artifact, kv_bytes=600 * POSITION_BYTES, context_length=200)
    for seed in range(9):
        answer(engine, ask("x", text(seed, 100), 5))
        held = engine.status()
        assert held.kv_bytes == 0
        assert 0 < held.cached_bytes <= 600 * POSITION_BYTES * 1.5  # whole pages
    for n in range(4):
        engine.add(ask(f"r{n}", text(20 + n, 100), 100, end_ids=frozenset()))
    most = 0
    while engine.has_work():
        engine.step()
        most = max(most, engine.status().active)
    assert most == 3


def test_the_longest_unused_goes_first(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backends.onnx.loading.idle_rows", lambda active: 3)
    engine = load(artifact)
    for seed in (1, 2, 3, 1, 4):
        answer(engine, ask("x", text(seed, 100), 5))
    hits = [answer(engine, ask("x", text(seed, 100), 5))[1].cached_tokens for seed in (1, 3, 4)]
    assert hits == [98, 98, 98]
    assert answer(engine, ask("x", text(2, 100), 5))[1].cached_tokens == 0


def test_what_is_old_goes(artifact: pathlib.Path):
    engine, now = load(artifact), [0.0]
    engine._cache._clock = lambda: now[0]
    answer(engine, ask("x", text(1, 100)))
    now[0] = prefix_cache.MAX_IDLE_SECONDS - 1
    answer(engine, ask("x", text(2, 100)))
    now[0] += 2
    answer(engine, ask("x", text(3, 100)))
    assert len(engine._cache) == 2
    assert answer(engine, ask("x", text(1, 100)))[1].cached_tokens == 0


def test_a_failed_run_leaves_nothing_to_share(artifact: pathlib.Path):
    engine = load(artifact)
    graph = engine._graph
    assert graph is not None
    inner = graph.run

    def broken(*arguments):
        raise RuntimeError("broken")

    engine.add(ask("a", text(1, 100), 50))
    step_until_sampled(engine, "a")
    graph.run = broken  # type: ignore[method-assign]
    run(engine)
    graph.run = inner  # type: ignore[method-assign]
    assert engine.status().cached_bytes == 0
    assert answer(engine, ask("b", text(1, 100)))[1].cached_tokens == 0


def test_a_cancelled_prompt_is_not_prefilled_twice(artifact: pathlib.Path):
    engine = load(artifact)
    engine.add(ask("a", text(1, 300)))
    engine.step()
    engine.cancel("a")
    (end,) = engine.step()
    assert isinstance(end, Finished)
    usage = answer(engine, ask("b", text(1, 300)))[1]
    assert 0 < usage.cached_tokens < 300


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_said_before_and_beside_a_seeded_answer_is_the_cold_one(
    artifact: pathlib.Path, seed: int
):
    """Trees of conversations on few rows, cancelled here and there, against a fresh engine each."""
    generator = random.Random(seed)
    engine, cold = load(artifact, rows=3, kv_bytes=1200 * POSITION_BYTES), load(artifact)
    stems = [text(n, 60) for n in range(3)]
    asked = {}
    for n in range(25):
        stem = generator.choice(stems)
        ids = [*stem[: generator.randrange(2, 61)], *text(n, generator.randrange(40))]
        sampling = Sampling(temperature=generator.choice([0.0, 1.0]), seed=n)
        asked[f"r{n}"] = ask(f"r{n}", ids, generator.randrange(1, 20), sampling=sampling)
    events = {}
    for name, one in asked.items():
        engine.add(one)
        for _ in range(generator.randrange(12)):
            for event in engine.step():
                events.setdefault(event.request_id, []).append(event)
        if generator.random() < 0.2:
            engine.cancel(name)
    for name, found in run(engine).items():
        events.setdefault(name, []).extend(found)
    for name, one in asked.items():
        cold._cache.clear()
        expected, _ = answer(cold, one)
        end = events[name][-1]
        assert isinstance(end, Finished)
        found = ids_of(events[name])
        assert found == (expected[: len(found)] if end.reason == "cancelled" else expected)
