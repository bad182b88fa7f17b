"""The MLX engine on tiny models with keys and values, windows and states: alone, together, again."""

from __future__ import annotations

import pathlib
import threading
import weakref
from collections.abc import Iterator

import mlx.core as mx
import pytest

from backends.mlx.engine import MlxEngine
from backends.mlx.seat import Group, may_batch, padded_positions
from backends.types import (
    EngineError,
    Failed,
    Finished,
    GenerateRequest,
    Prefilled,
    Sampled,
    Sampling,
)
from tests.backends.mlx.engine_rig import (
    KINDS,
    answers,
    greedy,
    ids_of,
    load_tiny,
    prompt_of,
    run,
)
from tests.backends.mlx.tiny_mlx import write_tiny_mlx


@pytest.fixture(params=sorted(KINDS), scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    write_tiny_mlx(folder, KINDS[request.param])
    return folder


@pytest.fixture
def engine(folder: pathlib.Path) -> Iterator[MlxEngine]:
    engine = load_tiny(folder)
    yield engine
    engine.close()


def finish(events: list) -> Finished:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


def test_rows_of_a_batch_answer_as_they_do_alone(engine: MlxEngine):
    requests = [greedy(f"r{n}", prompt_of(5 + 40 * n, 20 + n)) for n in range(4)]
    alone = {}
    for request in requests:
        alone |= answers(engine, request)
    assert answers(engine, *requests) == alone
    assert len({tuple(ids) for ids in alone.values()}) > 1


def test_rows_really_share_runs(engine: MlxEngine):
    for n in range(3):
        engine.add(greedy(f"r{n}", prompt_of(40, 20 + n), 20))
    sizes = set()
    while engine.has_work():
        engine.step()
        sizes |= {len(group.seats) for group in engine._groups}
    assert 3 in sizes


def test_one_joins_while_others_decode(engine: MlxEngine):
    late = greedy("late", prompt_of(30, 50))
    alone = answers(engine, late)["late"]
    engine.add(greedy("early", prompt_of(60), 30))
    events = []
    while len(ids_of(events)) < 10:
        events += engine.step()
    engine.add(late)
    assert ids_of(run(engine)["late"]) == alone


def test_a_row_that_must_not_depend_on_others_stays_alone(engine: MlxEngine):
    engine.add(greedy("a", prompt_of(40), 20))
    engine.add(greedy("b", prompt_of(40, 30), 20))
    engine.add(greedy("own", prompt_of(40, 40), 20, reproducible=True))
    while engine.has_work():
        engine.step()
        for group in engine._groups:
            names = {seat.generation.id for seat in group.seats}
            assert names == {"own"} or "own" not in names


def test_rows_of_unlike_length_do_not_pad_each_other(engine: MlxEngine):
    engine.add(greedy("long", prompt_of(380), 15))
    engine.add(greedy("short", prompt_of(20), 15))
    while engine.has_work():
        engine.step()
        for group in engine._groups:
            lengths = [seat.length for seat in group.seats]
            assert may_batch(lengths), lengths
    assert may_batch([10, 200])
    assert not may_batch([100, 100_000])
    assert padded_positions([3, 5, 5]) == 2


def test_a_cold_and_a_cached_prompt_are_answered_alike(engine: MlxEngine, folder: pathlib.Path):
    first, then = prompt_of(120), prompt_of(120) + prompt_of(30, 60)
    cold = load_tiny(folder)
    expected = answers(cold, greedy("b", then))["b"]
    answers(engine, greedy("a", first, 2))
    engine.add(greedy("b", then))
    events = run(engine)["b"]
    assert ids_of(events) == expected
    assert finish(events).usage.cached_tokens >= 100
    engine.add(greedy("c", then))
    events = run(engine)["c"]
    assert ids_of(events) == expected
    assert finish(events).usage.cached_tokens >= 140
    cold.close()


def test_a_prompt_is_shared_with_one_that_is_still_answered(engine: MlxEngine):
    engine.add(greedy("a", prompt_of(100), 60))
    events = []
    while len(ids_of(events)) < 5:
        events += engine.step()
    engine.add(greedy("b", prompt_of(100), 60))
    found = run(engine)
    usage = finish(found["b"]).usage
    assert usage.cached_tokens >= 96
    assert ids_of(found["b"]) == ids_of(events) + ids_of(found["a"])


def test_a_system_prompt_serves_the_next_conversation(engine: MlxEngine):
    system = prompt_of(64)
    answers(engine, greedy("a", system + prompt_of(50, 30), 3, system_length=64))
    engine.add(greedy("b", system + prompt_of(50, 90), 3, system_length=64))
    assert finish(run(engine)["b"]).usage.cached_tokens == 64


def test_a_shifted_answer_is_that_of_the_ids_that_are_left(engine: MlxEngine):
    """What is said after a shift is what a fresh request for those ids is told."""
    request = greedy("a", prompt_of(50), 30, context_length=64, shift=True, keep_length=4)
    engine.add(request)
    events = run(engine)["a"]
    ids = [*request.prompt_ids, *ids_of(events)[:14]]
    kept = (*ids[:4], *ids[34:])
    again = answers(engine, greedy("b", kept, 16))["b"]
    assert ids_of(events)[14:30] == again


def test_memory_comes_back_after_a_cancel(engine: MlxEngine):
    answers(engine, greedy("warm", (1, 2, 3), 2))
    before = engine.status().cached_bytes
    for n in range(3):
        engine.add(greedy(f"r{n}", prompt_of(200, 20 + n), 100, cache_scope="x"))
    while engine.status().kv_bytes == 0 or engine._prefilling:
        engine.step()
    assert engine.status().kv_bytes > 0
    for n in range(3):
        engine.cancel(f"r{n}")
    run(engine)
    engine._cache.clear()
    assert engine.status().kv_bytes == 0
    assert engine.status().cached_bytes <= before
    mx.clear_cache()


def growth_of_decoding(folder: pathlib.Path) -> int:
    """Bytes that are live more after the 160th id than after the 64th; no buffer grows between.

    Padding is what mlx-lm counts down lazily, one live buffer for each state and id.
    """
    engine = load_tiny(folder, rows=1)
    engine.add(greedy("a", prompt_of(10), 170))
    seen: dict[int, int] = {}
    while engine.has_work():
        engine.step()
        for seat in engine._groups[0].seats if engine._groups else []:
            seen[seat.length] = mx.get_active_memory()
            if seat.length == 20:
                for cache in engine._groups[0].caches[:3]:
                    cache.left_padding = mx.array([0])
    engine.close()
    return seen[160] - seen[64]


def test_live_memory_stays_flat_while_decoding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    """And grows where states are not evaluated: else this test would say nothing."""
    write_tiny_mlx(tmp_path, KINDS["hybrid"])
    assert growth_of_decoding(tmp_path) < 64
    monkeypatch.setattr("backends.mlx.seat.EVALUATE_EVERY", 1 << 30)
    assert growth_of_decoding(tmp_path) >= 8 * 96


def test_what_a_model_held_is_free_after_close(folder: pathlib.Path):
    before = mx.get_active_memory()
    engine = load_tiny(folder)
    model = weakref.ref(engine._model)
    engine.add(greedy("a", prompt_of(100), 40))
    for _ in range(8):
        engine.step()
    engine.close()
    assert isinstance(engine.step()[0], Finished)
    assert model() is None
    assert mx.get_active_memory() - before < 4096
    assert mx.get_cache_memory() == 0


def test_another_thread_is_refused(engine: MlxEngine):
    found: list[object] = []
    thread = threading.Thread(target=lambda: (engine.add(greedy("a", (1, 2))), found.append(1)))
    thread.start()
    thread.join()
    (event,) = engine.step()
    assert isinstance(event, Failed)
    assert "thread" in event.message


def test_an_engine_lives_on_any_one_thread(folder: pathlib.Path):
    """MLX binds streams to threads: all that is loaded, kept and freed must be of one."""
    found: list[list[int]] = []

    def work() -> None:
        engine = load_tiny(folder)
        found.append(answers(engine, greedy("a", prompt_of(50)))["a"])
        found.append(answers(engine, greedy("b", prompt_of(50)))["b"])
        engine.close()

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 4
    assert all(ids == found[0] for ids in found)


class Raising:
    """A constraint with a defect."""

    def allowed(self) -> bytes:
        raise ZeroDivisionError("a defect")

    def limit(self, tokens: int) -> None:
        """Nothing is planned for."""

    @property
    def forced(self) -> int:
        return 0

    def accept(self, token_id: int) -> None:
        """Never reached."""


def test_a_defect_in_one_row_of_a_batch_ends_that_row(engine: MlxEngine):
    good = greedy("good", prompt_of(40), 30)
    alone = answers(engine, good)["good"]
    engine.add(good)
    engine.add(greedy("bad", prompt_of(40, 30), 30, constraint=Raising()))
    found = run(engine)
    assert ids_of(found["good"]) == alone
    assert isinstance(found["bad"][-1], Failed)


def fail_runs(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    left = [count]
    real = Group.run

    def failing(group: Group, model: object) -> mx.array:
        if left[0] > 0:
            left[0] -= 1
            raise RuntimeError("[metal::malloc] Resource limit (499000) exceeded.")
        return real(group, model)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Group, "run", failing)


def test_a_failed_run_ends_its_requests_and_the_engine_goes_on(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
):
    expected = answers(engine, greedy("before", prompt_of(40)))["before"]
    fail_runs(monkeypatch, 1)
    engine.add(greedy("a", prompt_of(40)))
    end = run(engine)["a"][-1]
    assert isinstance(end, Failed)
    assert (end.code, engine.status().cached_bytes) == ("memory", 0)
    assert answers(engine, greedy("after", prompt_of(40)))["after"] == expected


def test_two_failed_runs_in_a_row_are_the_end(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch):
    fail_runs(monkeypatch, 2)
    engine.add(greedy("a", prompt_of(40)))
    run(engine)
    engine.add(greedy("b", prompt_of(40)))
    with pytest.raises(EngineError, match="one after the other"):
        run(engine)


def test_more_than_the_budget_waits(folder: pathlib.Path):
    """Room for one row of 256 positions and little more."""
    roomy = load_tiny(folder, context_length=256)
    row = roomy._row_bytes.of(256)
    roomy.close()
    engine = load_tiny(folder, context_length=256, kv_bytes=row + row // 8)
    assert engine.capabilities.rows == 2
    for n in range(3):
        engine.add(greedy(f"r{n}", prompt_of(40, 20 + n), 200))
    for n in range(3):
        engine.step()
        engine.step()
        assert (engine.status().active, engine.status().waiting) == (1, 2 - n)
        engine.cancel(f"r{n}")
        run_one = engine.step()
        assert finish(run_one).reason == "cancelled"
    assert engine.status().cached_bytes <= row + row // 8
    engine.close()


def test_seeds_are_each_request_s_own(engine: MlxEngine):
    def drawn(name: str, seed: int) -> GenerateRequest:
        sampling = Sampling(temperature=1.2, seed=seed, top_k=0, top_p=1.0)
        return GenerateRequest(
            request_id=name, prompt_ids=prompt_of(20), max_tokens=12, sampling=sampling
        )

    alone = {}
    for seed in (1, 2, 3):
        alone |= answers(engine, drawn(f"s{seed}", seed))
    together = answers(engine, *(drawn(f"s{seed}", seed) for seed in (3, 1, 2)))
    assert together == alone
    assert len({tuple(ids) for ids in alone.values()}) == 3


def test_logprobs_beyond_the_list_are_exact(engine: MlxEngine):
    engine.add(greedy("a", prompt_of(20), 1, top_logprobs=100))
    (event,) = [event for event in run(engine)["a"] if isinstance(event, Sampled)]
    assert len(event.top) == 100
    assert event.top[0] == (event.token_id, event.logprob)
    assert all(one >= two for (_, one), (_, two) in zip(event.top, event.top[1:], strict=False))


def test_a_prompt_of_one_id(engine: MlxEngine):
    alone = answers(engine, greedy("a", (9,)))["a"]
    found = answers(engine, greedy("b", prompt_of(30), 20), greedy("a", (9,)), greedy("c", (11,)))
    assert found["a"] == alone


def test_progress_of_a_long_prompt_comes_in_chunks(engine: MlxEngine):
    engine.add(greedy("talking", prompt_of(20), 60))
    events = []
    while not ids_of(events):
        events += engine.step()
    engine.add(greedy("long", prompt_of(300), 2, reproducible=True))
    long = [event for event in run(engine)["long"] if isinstance(event, Prefilled)]
    assert [event.done for event in long] == [256, 300]
