"""Models with blocks that carry a state instead of keys and values."""

from __future__ import annotations

import math
import pathlib

import pytest
from msgspec.structs import replace

from backends.select import Choice
from backends.types import EngineError
from converters.artifact import read_artifact
from daemon.residency.placement import placement_of
from tests.backends.onnx.converted import converted
from tests.backends.onnx.engine_rig import EXACT, GREEDY, Watch, answer, ask, ids_of, load, run

PROMPT = [3 + (i * 11) % 600 for i in range(90)]


@pytest.fixture(scope="module", params=["lfm2", "granitehybrid", "nemotron_h"])
def artifact(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    return converted(tmp_path_factory.mktemp("states"), request.param)


def test_chunks_and_company_change_nothing(artifact: pathlib.Path):
    whole, _ = answer(load(artifact), ask("a", PROMPT, 20, sampling=EXACT))
    engine = load(artifact)
    assert engine._rows.states
    engine._pace.chunk = lambda left, **_: min(left, 30)  # type: ignore[method-assign]
    wanted = {f"r{n}": ask(f"r{n}", PROMPT[n:], 20, sampling=EXACT) for n in range(4)}
    for one in wanted.values():
        engine.add(one)
    events = run(engine)
    assert ids_of(events["r0"]) == whole
    for name, one in wanted.items():
        assert ids_of(events[name]) == answer(load(artifact), one)[0]


def test_a_conversation_goes_on_but_a_shared_beginning_is_no_use(artifact: pathlib.Path):
    engine = load(artifact)
    said, _ = answer(engine, ask("a", PROMPT, 10))
    follow_up = [*PROMPT, *said, 7, 8, 9]
    assert answer(engine, ask("b", PROMPT, 10))[1].cached_tokens == 0
    found, usage = answer(engine, ask("c", follow_up, 10))
    assert usage.cached_tokens == len(PROMPT) + len(said) - 1
    assert found == answer(load(artifact), ask("c", follow_up, 10))[0]
    assert answer(engine, ask("d", [*PROMPT, 5, 6], 10))[1].cached_tokens == 0


def test_nothing_is_guessed_because_nothing_can_be_taken_back(artifact: pathlib.Path):
    engine = load(artifact)
    watch = Watch(engine)
    answer(engine, ask("a", [5, 6, 7, 8] * 20, 60, sampling=GREEDY))
    assert {ids for _, ids in watch.shapes if ids < 32} == {1}


def test_a_full_context_begins_anew_with_what_is_left(artifact: pathlib.Path):
    engine = load(artifact)
    fields = {"context_length": 100, "end_ids": frozenset(), "shift": True, "keep_length": 10}
    found, usage = answer(engine, ask("a", PROMPT, 40, sampling=EXACT, **fields))
    assert usage.dropped_tokens == 45
    held = [*PROMPT, *found[:10]]
    del held[10:55]
    cold, _ = answer(load(artifact), ask("b", held, 30, sampling=EXACT, end_ids=frozenset()))
    assert found[10:40] == cold


def test_rows_that_move_take_their_states_along(artifact: pathlib.Path):
    lengths = {"r0": 3, "r1": 40, "r2": 3, "r3": 40}
    wanted = {
        name: ask(name, PROMPT[place:], count, sampling=EXACT, end_ids=frozenset())
        for place, (name, count) in enumerate(lengths.items())
    }
    engine = load(artifact)
    for one in wanted.values():
        engine.add(one)
    events = run(engine)
    for name, one in wanted.items():
        assert ids_of(events[name]) == answer(load(artifact), one)[0]


def test_states_are_counted_where_memory_is_planned(artifact: pathlib.Path):
    """The plan's figure, the artifact's, and that of one made before it was written, are those of the rows."""
    found = read_artifact(artifact)
    assert found.onnx is not None
    engine = load(artifact)
    views = list(engine._rows.states.views(0, 1))
    held = 2 * sum(4 * math.prod(view.shape) for view in views)
    assert found.row_bytes == found.states_bytes == held > 0
    assert replace(found, row_bytes=0).states_bytes == held
    placed = placement_of(
        found, artifact, Choice(backend="onnx", target="", device="cpu", reason="")
    )
    ids = found.kv_bytes_per_token * 100
    assert placed.needed_bytes(100) - placed.weight_bytes == held + ids
    # With memory for one row and its states there is one row, not as many as its ids alone would allow.
    assert load(artifact, rows=4, context_length=100, kv_bytes=held + ids).capabilities.rows == 1
    with pytest.raises(EngineError, match="too few to answer in"):
        load(artifact, rows=4, context_length=100, kv_bytes=held)
