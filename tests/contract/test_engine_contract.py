"""The `Engine` promise, the same for every backend: see backends.types.Engine."""

from __future__ import annotations

import random

import pytest

from backends.engine.contract import Engine
from backends.types import (
    EngineError,
    Failed,
    GenerateRequest,
    Prefilled,
    Sampled,
    Sampling,
    TokenEvent,
)
from tests.contract.backends_under_test import UnderTest
from tests.contract.stepping import (
    CONTEXT,
    LONG_PROMPT,
    ROWS,
    check_order,
    finish,
    request,
    run,
    sampled,
    step_until,
)


def test_event_order_and_usage(engine: Engine):
    engine.add(request("a", LONG_PROMPT))
    events = run(engine)["a"]
    end = finish(events)
    progress = [event for event in events if isinstance(event, Prefilled)]
    assert [event.done for event in progress] == sorted({event.done for event in progress})
    assert (progress[-1].done, progress[-1].total) == (300, 300)
    assert len(sampled(events)) == 12
    assert (end.reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("length", 300, 12)
    assert min(end.usage.prefill_ns, end.usage.decode_ns, end.usage.queued_ns) > 0


def test_nothing_to_do(engine: Engine):
    assert not engine.has_work()
    assert engine.step() == []


def test_same_seed_repeats(engine: Engine):
    engine.add(request("a"))
    first = sampled(run(engine)["a"])
    engine.add(request("b"))
    assert sampled(run(engine)["b"]) == first


def test_batch_equals_alone(engine: Engine):
    """Only where the engine says that neighbours do not change a row's numbers."""
    if not engine.capabilities.reproducible_batches:
        assert engine.capabilities.device != "cpu", "on the CPU this holds for every backend here"
        return
    prompts = {f"r{n}": tuple(30 + (i * n) % 90 for i in range(2 + 37 * n)) for n in range(6)}
    samplings = [Sampling(temperature=0.0), Sampling(temperature=1.1, seed=4, repeat_penalty=1.2)]
    requests = [
        request(name, prompt, 25, sampling=samplings[place % 2])
        for place, (name, prompt) in enumerate(prompts.items())
    ]
    alone = {}
    for one in requests:
        engine.add(one)
        alone |= run(engine)
    for one in requests:
        engine.add(one)
    together = run(engine)
    assert {k: sampled(v) for k, v in together.items()} == {k: sampled(v) for k, v in alone.items()}


def test_requests_interleave(engine: Engine):
    engine.add(request("a", max_tokens=40))
    engine.add(request("b", max_tokens=40))
    names = []
    while engine.has_work():
        names += [event.request_id for event in engine.step() if isinstance(event, Sampled)]
    assert names.index("b") < len(names) - names[::-1].index("a") - 1
    assert (names.count("a"), names.count("b")) == (40, 40)


def test_more_requests_than_rows_all_finish(engine: Engine):
    for n in range(2 * ROWS + 1):
        engine.add(request(f"r{n}"))
    assert engine.status().waiting == 2 * ROWS + 1
    events = run(engine)
    assert len(events) == 2 * ROWS + 1
    assert all(finish(found).usage.completion_tokens == 12 for found in events.values())
    assert (engine.status().active, engine.status().waiting) == (0, 0)


def test_a_long_prompt_does_not_stop_a_decoding_client(engine: Engine):
    engine.add(request("talking", max_tokens=100))
    step_until(engine, Sampled, "talking")
    engine.add(request("long", LONG_PROMPT))
    seen = step_until(engine, Sampled, "long")
    chunks = [event for event in seen if isinstance(event, Prefilled)]
    assert len(sampled([e for e in seen if e.request_id == "talking"])) >= len(chunks) - 1


def test_cancel_while_queued(engine: Engine):
    for n in range(ROWS + 1):
        engine.add(request(f"r{n}", max_tokens=30))
    engine.step()
    engine.cancel(f"r{ROWS}")
    events = run(engine)
    assert [finish(events[f"r{ROWS}"]).reason, len(events[f"r{ROWS}"])] == ["cancelled", 1]
    assert finish(events["r0"]).reason == "length"


def test_cancel_while_prefilling(engine: Engine):
    engine.add(request("a", LONG_PROMPT))
    seen = step_until(engine, Prefilled, "a")
    assert sampled(seen) == []
    engine.cancel("a")
    assert engine.status().active == 0
    assert finish(seen + run(engine)["a"]).reason == "cancelled"


def test_cancel_while_decoding(engine: Engine):
    engine.add(request("a", max_tokens=100))
    engine.add(request("b", max_tokens=20))
    seen = step_until(engine, Sampled, "a")
    engine.cancel("a")
    assert engine.status().active + engine.status().waiting == 1
    events = run(engine)
    end = finish([e for e in seen if e.request_id == "a"] + events["a"])
    assert (end.reason, end.usage.completion_tokens) == ("cancelled", 1)
    assert finish([e for e in seen if e.request_id == "b"] + events["b"]).reason == "length"


def test_cancel_of_the_unknown_and_the_finished_is_nothing(engine: Engine):
    engine.add(request("a"))
    run(engine)
    engine.cancel("a")
    engine.cancel("never")
    assert not engine.has_work()


def test_context_full_ends_with_length(engine: Engine):
    engine.add(request("a", LONG_PROMPT[:20], -1, context_length=32, end_ids=frozenset()))
    end = finish(run(engine)["a"])
    assert (end.reason, end.usage.prompt_tokens + end.usage.completion_tokens) == ("length", 32)


def test_no_tokens_wanted(engine: Engine):
    engine.add(request("a", max_tokens=0))
    events = run(engine)["a"]
    assert (sampled(events), finish(events).reason) == ([], "length")


def test_end_ids_stop(engine: Engine):
    engine.add(request("a"))
    ids = sampled(run(engine)["a"])
    last = next(place for place in range(1, 12) if ids[place] not in ids[:place])
    engine.add(request("b", end_ids=frozenset({ids[last]})))
    events = run(engine)["b"]
    assert sampled(events) == ids[:last]
    assert finish(events).usage.completion_tokens == last + 1
    assert finish(events).reason == "stop"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (request("bad", ()), "invalid"),
        (request("bad", (1_000_000,)), "invalid"),
        (request("bad", (1,) * CONTEXT, context_length=CONTEXT), "too_long"),
        (request("bad", (1,) * 50, context_length=50), "too_long"),
    ],
)
def test_a_request_that_cannot_run_fails_alone(engine: Engine, wrong: GenerateRequest, code: str):
    engine.add(request("good"))
    engine.add(wrong)
    events = run(engine)
    end = check_order(events["bad"])
    assert isinstance(end, Failed)
    assert end.code == code
    assert finish(events["good"]).reason == "length"


def test_a_request_id_in_use_ends_once(engine: Engine):
    engine.add(request("a", max_tokens=50))
    step_until(engine, Sampled, "a")
    engine.add(request("a"))
    end = check_order(run(engine)["a"])
    assert isinstance(end, Failed)
    assert not engine.has_work()


def test_logprobs(engine: Engine):
    engine.add(request("none", max_tokens=3))
    engine.add(request("own", max_tokens=3, top_logprobs=0))
    engine.add(request("some", max_tokens=3, top_logprobs=1))
    events = run(engine)
    by_name = {k: [e for e in v if isinstance(e, Sampled)] for k, v in events.items()}
    assert [(e.logprob, e.top) for e in by_name["none"]] == [(None, ())] * 3
    assert [e.top for e in by_name["own"]] == [()] * 3
    for event in by_name["own"] + by_name["some"]:
        assert event.logprob is not None
        assert event.logprob <= 0
        assert [logprob >= event.logprob for _, logprob in event.top] == [True] * len(event.top)
    assert [len(e.top) for e in by_name["some"]] == [1] * 3


class OnlyThese:
    """Allows one of `ids` each time; after `ends_after` ids the end id alone."""

    def __init__(self, ids: set[int], end_id: int, ends_after: int) -> None:
        self._ids, self._end_id, self._left = ids, end_id, ends_after

    def allowed(self) -> bytes:
        ids = self._ids if self._left > 0 else {self._end_id}
        return sum(1 << token_id for token_id in ids).to_bytes(64, "little")

    def accept(self, token_id: int) -> None:
        self._left -= 1

    def limit(self, tokens: int) -> None:
        pass

    @property
    def forced(self) -> int:
        return 0


def test_a_constraint_holds_its_row_and_no_other(engine: Engine, under_test: UnderTest):
    assert engine.capabilities.grammar
    end_ids = frozenset({under_test.end_id})
    engine.add(request("free"))
    alone = sampled(run(engine)["free"])
    held = {ord(letter) for letter in "the quick"}
    engine.add(request("free"))
    constraint = OnlyThese(held, under_test.end_id, 1000)
    engine.add(request("held", max_tokens=30, constraint=constraint, end_ids=end_ids))
    events = run(engine)
    assert sampled(events["free"]) == alone
    ids = sampled(events["held"])
    assert len(ids) == 30
    assert set(ids) <= held
    assert finish(events["held"]).reason == "length"


def test_close_ends_what_is_in_flight(engine: Engine):
    for n in range(ROWS + 2):
        engine.add(request(f"r{n}", max_tokens=50))
    seen = step_until(engine, Sampled, "r0")
    engine.close()
    engine.close()
    events = run(engine)
    assert len(events) == ROWS + 2
    for name, found in events.items():
        before = [event for event in seen if event.request_id == name]
        assert finish(before + found).reason == "cancelled"
    engine.add(request("late"))
    assert isinstance(check_order(run(engine)["late"]), Failed)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_adding_stepping_and_cancelling(engine: Engine, seed: int):
    """Whatever happens when: every request ends once and nothing is left behind."""
    generator = random.Random(seed)
    events: dict[str, list[TokenEvent]] = {}
    added = 0
    for _ in range(150):
        match generator.choice(["add", "cancel", "step", "step", "step"]):
            case "add":
                prompt = LONG_PROMPT[: generator.choice([0, 1, 2, 31, 33, 64, 200])]
                engine.add(request(f"r{added}", prompt, generator.choice([-1, 0, 1, 9])))
                added += 1
            case "cancel" if added:
                engine.cancel(f"r{generator.randrange(added)}")
            case _:
                for event in engine.step():
                    events.setdefault(event.request_id, []).append(event)
        assert engine.status().active <= ROWS
    for name, found in run(engine, limit=20_000).items():
        events.setdefault(name, []).extend(found)
    assert len(events) == added
    for found in events.values():
        check_order(found)
    status = engine.status()
    assert (status.active, status.waiting, status.kv_bytes) == (0, 0, 0)


def test_embeddings_are_refused_by_name_or_given(engine: Engine):
    if engine.capabilities.embed:
        assert len(engine.embed([(1, 2)])) == 1
        return
    with pytest.raises(EngineError) as caught:
        engine.embed([(1, 2)])
    assert caught.value.code == "unsupported"
