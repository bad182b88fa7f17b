"""The `Engine` promise where requests share: what is kept, contexts that shift, constraints."""

from __future__ import annotations

import pathlib

from backends.engine.contract import Engine
from backends.types import (
    EngineError,
    Failed,
    Load,
    Prefilled,
    TokenEvent,
)
from tests.contract.backends_under_test import UnderTest
from tests.contract.stepping import (
    CONTEXT,
    LONG_PROMPT,
    check_order,
    finish,
    request,
    run,
    sampled,
    usage_of,
)


def test_what_was_said_before_is_counted_whole_and_apart(engine: Engine):
    """Kept or not: the full prompt is counted, and a repeated answer is the same."""
    engine.add(request("a", LONG_PROMPT))
    first = run(engine)["a"]
    engine.add(request("b", LONG_PROMPT))
    again = run(engine)["b"]
    assert sampled(again) == sampled(first)
    assert usage_of(first).cached_tokens == 0
    assert usage_of(again).prompt_tokens == 300
    assert 0 <= usage_of(again).cached_tokens <= 298
    progress = [event for event in again if isinstance(event, Prefilled)]
    assert progress[0].cached == usage_of(again).cached_tokens
    assert (progress[-1].done, progress[-1].total) == (300, 300)


def test_nothing_kept_of_one_scope_serves_another(engine: Engine):
    engine.add(request("a", LONG_PROMPT, cache_scope="one key"))
    run(engine)
    engine.add(request("b", LONG_PROMPT, cache_scope="another"))
    assert usage_of(run(engine)["b"]).cached_tokens == 0
    # The system prompt of both is the same: its ids are no secret of either.
    scoped = {"cache_scope": "a third", "system_length": 200}
    engine.add(request("c", LONG_PROMPT, **scoped))
    run(engine)
    engine.add(request("d", LONG_PROMPT, cache_scope="a fourth", system_length=200))
    assert usage_of(run(engine)["d"]).cached_tokens in (0, 200)


def test_a_shifted_answer_goes_on_and_says_what_left(engine: Engine):
    shifting = request(
        "a",
        LONG_PROMPT[:40],
        100,
        context_length=64,
        end_ids=frozenset(),
        shift=True,
        keep_length=5,
    )
    engine.add(shifting)
    events = run(engine)["a"]
    assert len(sampled(events)) == 100
    usage = usage_of(events)
    assert (usage.prompt_tokens, usage.completion_tokens) == (40, 100)
    # 64 ids are held after 24; each time half of those beyond the first five go.
    assert usage.dropped_tokens == 29 + 29 + 29
    assert engine.status().kv_bytes == 0


def test_cancel_while_shifting(engine: Engine):
    fields = {"context_length": 64, "end_ids": frozenset(), "shift": True}
    engine.add(request("a", LONG_PROMPT[:40], 500, **fields))
    seen: list[TokenEvent] = []
    while len(sampled(seen)) < 24:
        seen += engine.step()
    engine.cancel("a")
    assert finish(seen + run(engine)["a"]).reason == "cancelled"


class OnlyEven:
    """A grammar of even ids; fails when it has seen `fails_after` of them."""

    def __init__(self, vocabulary: int, fails_after: int = 1000) -> None:
        self._allowed = bytes([0b01010101] * -(-vocabulary // 8))
        self._left = fails_after

    def allowed(self) -> bytes:
        if self._left <= 0:
            raise EngineError("invalid", "format became too complex")
        return self._allowed

    def accept(self, token_id: int) -> None:
        self._left -= 1

    def limit(self, tokens: int) -> None:
        pass

    @property
    def forced(self) -> int:
        return 0


def test_an_answer_is_held_to_its_constraint_beside_free_ones(engine: Engine):
    if not engine.capabilities.grammar:
        return
    engine.add(request("alone"))
    alone = sampled(run(engine)["alone"])
    constraint = OnlyEven(engine.capabilities.vocabulary)
    engine.add(request("held", constraint=constraint, end_ids=frozenset()))
    engine.add(request("free"))
    events = run(engine)
    assert all(token_id % 2 == 0 for token_id in sampled(events["held"]))
    assert sampled(events["free"]) == alone
    assert any(token_id % 2 for token_id in alone)


def test_a_constraint_that_fails_ends_its_own_request(engine: Engine):
    if not engine.capabilities.grammar:
        return
    failing = OnlyEven(engine.capabilities.vocabulary, fails_after=3)
    engine.add(request("bad", constraint=failing, end_ids=frozenset()))
    engine.add(request("good"))
    events = run(engine)
    end = check_order(events["bad"])
    assert isinstance(end, Failed)
    assert (end.code, len(sampled(events["bad"]))) == ("invalid", 3)
    assert finish(events["good"]).reason == "length"
    assert engine.status().active == 0


def test_two_models_at_once(under_test: UnderTest, artifact: pathlib.Path, engine: Engine):
    load = Load(
        request_id="load", backend=under_test.backend.name, artifact=str(artifact), rows=1,
        context_length=CONTEXT, threads=1,
    )  # fmt: skip
    other = under_test.backend.load(load)
    engine.add(request("a", max_tokens=30))
    alone = sampled(run(engine)["a"])
    engine.add(request("b", max_tokens=30))
    other.add(request("c", max_tokens=30))
    found: dict[str, list[TokenEvent]] = {"b": [], "c": []}
    while engine.has_work() or other.has_work():
        for event in [*engine.step(), *other.step()]:
            found[event.request_id].append(event)
    other.close()
    assert sampled(found["b"]) == sampled(found["c"]) == alone
