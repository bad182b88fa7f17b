from __future__ import annotations

import pytest

from backends.engine.generation import Generation, plan_limits
from backends.image_span import ImageSpan
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


def shown(ids: tuple[int, ...], *spans: ImageSpan, **fields) -> GenerateRequest:
    return GenerateRequest(request_id="r", prompt_ids=ids, images=spans, **fields)


PAIR = ImageSpan(start=1, length=2, embeddings=bytes(2 * 3 * 4))


def test_a_model_that_takes_no_images_says_so():
    assert plan_limits(shown((1, -5, -5, 2), PAIR), 50, 10, 3)[0] == 50
    with pytest.raises(EngineError) as caught:
        plan_limits(shown((1, -5, -5, 2), PAIR), 50, 10)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize(("image_width", "fits"), [(3, True), (2, False), (6, False), (-1, True)])
def test_vectors_have_the_models_width(image_width: int, fits: bool):
    wanted = shown((1, -5, -5, 2), PAIR)
    if fits:
        plan_limits(wanted, 50, 10, image_width)
        return
    with pytest.raises(EngineError) as caught:
        plan_limits(wanted, 50, 10, image_width)
    assert caught.value.code == "invalid"


def test_a_context_with_images_is_never_shifted():
    wanted = shown((1, -5, -5, 2), PAIR, shift=True, context_length=6)
    generation = Generation(wanted, context=6, max_tokens=60)
    assert len(generation.accept(3, None, ())) == 1
    ended = generation.accept(3, None, ())[-1]
    assert isinstance(ended, Finished)
    assert (ended.reason, generation.dropped) == ("length", 0)


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
