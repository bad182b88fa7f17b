from __future__ import annotations

import pytest

from backends.engine.generation import Generation, plan_limits
from backends.types import EngineError, Finished, GenerateRequest, Sampled


def request(prompt: int = 4, **fields) -> GenerateRequest:
    return GenerateRequest(request_id="r", prompt_ids=tuple(range(prompt)), **fields)


@pytest.mark.parametrize(
    ("context_length", "max_tokens", "capacity", "expected"),
    [
        (100, 7, 50, (50, 7)),
        (20, -1, 50, (20, 200)),
        (20, 10_000, 50, (20, 200)),
        (20, 0, 50, (20, 0)),
    ],
)
def test_limits(context_length: int, max_tokens: int, capacity: int, expected: tuple[int, int]):
    wanted = request(context_length=context_length, max_tokens=max_tokens)
    assert plan_limits(wanted, capacity, vocabulary=10) == expected


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (request(prompt=0), "invalid"),
        (GenerateRequest(request_id="r", prompt_ids=(1, 10)), "invalid"),
        (GenerateRequest(request_id="r", prompt_ids=(1, -1)), "invalid"),
        (request(prompt=8, context_length=8), "too_long"),
    ],
)
def test_requests_that_cannot_run(wanted: GenerateRequest, code: str):
    with pytest.raises(EngineError) as caught:
        plan_limits(wanted, 50, vocabulary=10)
    assert caught.value.code == code


def test_an_end_id_is_counted_but_not_announced():
    generation = Generation(request(end_ids=frozenset({9})), context=50, max_tokens=5)
    generation.start()
    generation.finish_prefill()
    (sampled,) = generation.accept(3, -0.5, ())
    (finished,) = generation.accept(9, None, ())
    assert sampled == Sampled(request_id="r", token_id=3, logprob=-0.5)
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.usage.completion_tokens) == ("stop", 2)
    assert generation.has_ended


def test_the_clocks_add_up_even_for_what_never_started():
    generation = Generation(request(), context=50, max_tokens=5)
    usage = generation.close("cancelled").usage
    assert (usage.prefill_ns, usage.decode_ns, usage.prompt_tokens) == (0, 0, 4)
    assert usage.queued_ns > 0
