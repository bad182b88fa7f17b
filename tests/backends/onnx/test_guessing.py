"""Runs over guesses and contexts that are shifted: faster or longer answers, the same ids."""

from __future__ import annotations

import pathlib

import pytest

from backends.engine.generation import plan_shift
from backends.types import Prefilled, Sampling
from tests.backends.onnx.engine_rig import (
    EXACT,
    GREEDY,
    Watch,
    answer,
    ask,
    ids_of,
    load,
    run,
    step_until_sampled,
    usage_of,
)
from tests.backends.onnx.tiny_artifact import write_tiny_artifact

PROMPT = [9 + i % 13 for i in range(60)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_artifact(folder)
    return folder


@pytest.fixture(autouse=True)
def typical_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs of so small a model take is all overhead and chance."""
    monkeypatch.setattr("backends.engine.speculation.RunCosts.saw", lambda *_: None)


def test_a_loop_is_said_in_fewer_runs_with_the_same_ids(artifact: pathlib.Path):
    plain = load(artifact)
    seen = Watch(plain)
    expected, _ = answer(plain, ask("a", PROMPT, 300, sampling=EXACT))
    assert len(seen.shapes) > 299
    engine = load(artifact)
    watch = Watch(engine)
    found, usage = answer(engine, ask("a", PROMPT, 300, sampling=GREEDY))
    assert found == expected
    assert usage.completion_tokens == 300
    assert len(watch.shapes) < 200
    assert max(ids for _, ids in watch.shapes[1:]) > 2


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_guesses_take_the_same_random_numbers(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch, temperature: float
):
    sampling = Sampling(temperature=temperature, seed=5, top_k=3, repeat_penalty=1.1)
    wanted = ask("a", PROMPT, 200, sampling=sampling, top_logprobs=1)
    expected, _ = answer(load(artifact), wanted)
    monkeypatch.setattr("backends.engine.applicant.is_exact", lambda request: False)
    engine = load(artifact)
    watch = Watch(engine)
    found, _ = answer(engine, wanted)
    assert found == expected
    assert max(ids for _, ids in watch.shapes[1:]) > 1


def test_nobody_guesses_in_company_or_when_asked_not_to(artifact: pathlib.Path):
    engine = load(artifact)
    watch = Watch(engine)
    answer(engine, ask("a", PROMPT, 100, reproducible=True))
    answer(engine, ask("b", PROMPT, 100, sampling=EXACT))
    for name in "cd":
        engine.add(ask(name, PROMPT, 100))
    while len(engine._decoding) < 2:
        engine.step()
    del watch.shapes[:]
    while len(engine._decoding) == 2:
        engine.step()
    assert {ids for _, ids in watch.shapes} == {1}


def test_a_guessing_answer_ends_where_it_must(artifact: pathlib.Path):
    expected, _ = answer(load(artifact), ask("a", PROMPT, 120, sampling=EXACT))
    for most in (1, 2, 57, 120):
        found, usage = answer(load(artifact), ask("a", PROMPT, most))
        assert (found, usage.completion_tokens) == (expected[:most], most)
    end_id = expected[100]
    place = expected.index(end_id)
    wanted = ask("a", PROMPT, 120, end_ids=frozenset({end_id}))
    assert answer(load(artifact), wanted)[0] == expected[:place]
    wanted = ask("a", PROMPT, 500, context_length=100, end_ids=frozenset())
    assert answer(load(artifact), wanted)[0] == expected[:40]


def test_a_guessing_answer_can_be_cancelled_and_what_it_said_is_kept(artifact: pathlib.Path):
    engine = load(artifact)
    engine.add(ask("a", PROMPT, 200))
    seen = []
    while len(ids_of(seen)) < 80:
        seen += engine.step()
    engine.cancel("a")
    (end,) = engine.step()
    said = ids_of(seen)
    assert usage_of([end]).completion_tokens == len(said)
    again = [*PROMPT, *said, 20, 21, 22]
    assert answer(engine, ask("b", again))[1].cached_tokens == len(PROMPT) + len(said) - 1


@pytest.mark.parametrize(
    ("held", "keep", "expected"),
    [(100, 0, (0, 50)), (100, 20, (20, 60)), (100, 99, (96, 98)), (4, 4, (0, 2)), (2, 9, (0, 1))],
)
def test_half_of_what_need_not_be_kept_goes(held: int, keep: int, expected: tuple[int, int]):
    assert plan_shift(held, keep) == expected


@pytest.mark.parametrize("sampling", [EXACT, GREEDY])
def test_a_full_context_is_shifted_and_the_answer_goes_on(
    artifact: pathlib.Path, sampling: Sampling
):
    engine = load(artifact)
    fields = {"context_length": 100, "end_ids": frozenset(), "shift": True, "keep_length": 10}
    found, usage = answer(engine, ask("a", PROMPT, 150, sampling=sampling, **fields))
    assert (len(found), usage.completion_tokens, usage.prompt_tokens) == (150, 150, 60)
    # 100 ids are held when 40 have been sampled; from then on every 45 more.
    assert usage.dropped_tokens == 45 * 3
    held = [*PROMPT, *found[:40]]
    del held[10:55]
    cold, _ = answer(load(artifact), ask("b", held, 20, sampling=EXACT, end_ids=frozenset()))
    assert found[40:60] == cold


def test_shifting_shows_no_progress_and_leaves_other_clients_alone(artifact: pathlib.Path):
    engine = load(artifact)
    fields = {"context_length": 100, "end_ids": frozenset(), "shift": True}
    alone, _ = answer(engine, ask("x", PROMPT[:20], 100, sampling=EXACT))
    engine.add(ask("a", PROMPT, 200, sampling=EXACT, **fields))
    seen = step_until_sampled(engine, "a")
    engine.add(ask("b", PROMPT[:20], 100, sampling=EXACT))
    events = run(engine)
    assert not any(isinstance(event, Prefilled) for event in events["a"])
    assert ids_of(events["b"]) == alone
    assert len(ids_of([*seen, *events["a"]])) == 200
    assert engine.status().kv_bytes == 0


def test_without_shift_a_full_context_ends_the_answer(artifact: pathlib.Path):
    fields = {"context_length": 100, "end_ids": frozenset()}
    found, usage = answer(load(artifact), ask("a", PROMPT, 150, **fields))
    assert (len(found), usage.dropped_tokens) == (40, 0)
