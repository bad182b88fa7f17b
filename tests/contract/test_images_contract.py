"""The `Engine` promise where images lie in the prompt: vectors stand for ids, and nothing else changes.

An image whose vectors are rows of the embedding table must give what the ids of those rows give.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.engine.contract import Engine
from backends.image_span import ImageSpan, image_id
from backends.types import Failed, GenerateRequest, Sampling
from tests.contract.backends_under_test import UnderTest
from tests.contract.stepping import (
    LONG_PROMPT,
    check_order,
    finish,
    request,
    run,
    sampled,
    usage_of,
)

GREEDY = Sampling(temperature=0.0)
ONE, OTHER = image_id(b"one image"), image_id(b"another one")
Table = NDArray[np.float32]


@pytest.fixture
def table(under_test: UnderTest, artifact: pathlib.Path, engine: Engine) -> Table:
    if engine.capabilities.image_width == 0:
        pytest.skip("this engine takes no images")
    return under_test.table(artifact)


def span(table: Table, ids: Sequence[int], start: int, **fields: Any) -> ImageSpan:
    """An image that looks like `ids`."""
    vectors = table[list(ids)].astype("<f4").tobytes()
    return ImageSpan(start=start, length=len(ids), embeddings=vectors, **fields)


def seen(
    name: str,
    table: Table,
    prompt: tuple[int, ...],
    places: dict[int, tuple[int, int]],
    **fields: Any,
) -> GenerateRequest:
    """`prompt` with images of its own ids: {start: (length, image id)}."""
    ids, spans = list(prompt), list[ImageSpan]()
    for start, (length, identity) in places.items():
        spans.append(span(table, prompt[start : start + length], start))
        ids[start : start + length] = [identity] * length
    fields.setdefault("sampling", GREEDY)
    return request(name, tuple(ids), images=tuple(spans), **fields)


@pytest.mark.parametrize(
    "places",
    [
        {0: (5, ONE)},
        {10: (30, ONE)},
        {40: (20, ONE), 60: (230, OTHER)},
        {1: (298, ONE)},
        {290: (10, ONE)},
    ],
)
def test_vectors_of_ids_are_as_good_as_the_ids(
    engine: Engine, table: Table, places: dict[int, tuple[int, int]]
):
    engine.add(request("text", LONG_PROMPT, sampling=GREEDY, cache_scope="text"))
    expected = sampled(run(engine)["text"])
    engine.add(seen("image", table, LONG_PROMPT, places, cache_scope="image"))
    events = run(engine)["image"]
    assert sampled(events) == expected
    assert usage_of(events).prompt_tokens == len(LONG_PROMPT)
    assert usage_of(events).cached_tokens == 0


def test_images_beside_text(engine: Engine, table: Table):
    prompts = {f"r{n}": tuple(30 + (7 * i * n) % 90 for i in range(20 + 30 * n)) for n in range(5)}
    text = [request(name, prompt, 20, sampling=GREEDY) for name, prompt in prompts.items()]
    expected = {}
    for one in text:
        engine.add(one)
        expected |= {name: sampled(events) for name, events in run(engine).items()}
    for place, one in enumerate(text):
        with_image = seen(
            one.request_id, table, one.prompt_ids, {3: (12, ONE - place)}, max_tokens=20
        )
        engine.add(with_image if place % 2 else one)
    found = run(engine)
    if engine.capabilities.reproducible_batches:
        assert {name: sampled(events) for name, events in found.items()} == expected
    assert all(usage_of(events).completion_tokens == 20 for events in found.values())


def test_other_images_say_something_else(engine: Engine, table: Table):
    """Same places, same text, another image: nothing that was kept of the first may serve it."""
    shown = seen("a", table, LONG_PROMPT, {100: (100, ONE)})
    engine.add(shown)
    first = sampled(run(engine)["a"])
    other_ids = tuple(reversed(LONG_PROMPT[100:200]))
    ids = (*LONG_PROMPT[:100], *[OTHER] * 100, *LONG_PROMPT[200:])
    other = span(table, other_ids, 100)
    engine.add(request("b", ids, images=(other,), sampling=GREEDY))
    events = run(engine)["b"]
    assert usage_of(events).cached_tokens <= 100
    text = (*LONG_PROMPT[:100], *other_ids, *LONG_PROMPT[200:])
    engine.add(request("c", text, sampling=GREEDY, cache_scope="apart"))
    assert sampled(events) == sampled(run(engine)["c"])
    if table.any():  # a script sees nothing
        assert sampled(events) != first


@pytest.mark.parametrize("seed", [None, 3])
def test_the_same_image_again_gives_the_same(engine: Engine, table: Table, seed: int | None):
    """Also where a kept prefix ends inside it: the next prompt has the image and other text."""
    sampling = Sampling(temperature=0.0, seed=seed)
    shown = {50: (150, ONE)}
    asked = seen("a", table, LONG_PROMPT, shown, sampling=sampling)
    engine.add(asked)
    first = sampled(run(engine)["a"])
    engine.add(seen("b", table, LONG_PROMPT, shown, sampling=sampling))
    again = run(engine)["b"]
    assert sampled(again) == first
    assert usage_of(again).cached_tokens <= len(LONG_PROMPT) - 2
    longer = (*LONG_PROMPT[:200], *range(30, 90))
    engine.add(seen("c", table, longer, shown, sampling=sampling))
    found = sampled(run(engine)["c"])
    engine.add(seen("d", table, longer, shown, sampling=sampling, cache_scope="cold"))
    assert found == sampled(run(engine)["d"])
    engine.add(seen("e", table, LONG_PROMPT[:120], {50: (70, ONE)}, sampling=sampling))
    found = sampled(run(engine)["e"])
    text = request("f", LONG_PROMPT[:120], sampling=sampling, cache_scope="cold too")
    engine.add(text)
    assert found == sampled(run(engine)["f"])


def test_penalties_and_guesses_know_text_only(engine: Engine, table: Table):
    repeating = (40, 41, 42, 43, 44, 45) * 20
    penalised = Sampling(temperature=0.0, repeat_penalty=1.3, presence_penalty=0.2)
    engine.add(seen("a", table, repeating, {30: (40, ONE)}, max_tokens=60, sampling=penalised))
    ids = sampled(run(engine)["a"])
    assert len(ids) == 60
    assert min(ids) >= 0
    engine.add(seen("b", table, repeating, {30: (40, ONE)}, max_tokens=60))
    unpenalised = sampled(run(engine)["b"])
    assert min(unpenalised) >= 0


def test_a_context_with_images_ends_where_it_is_full(engine: Engine, table: Table):
    fields = {"context_length": 64, "end_ids": frozenset(), "shift": True}
    engine.add(seen("a", table, LONG_PROMPT[:40], {5: (20, ONE)}, max_tokens=100, **fields))
    events = run(engine)["a"]
    assert finish(events).reason == "length"
    assert len(sampled(events)) == 24
    assert usage_of(events).dropped_tokens == 0


def _spans(table: Table, *places: tuple[int, int], **fields: Any) -> tuple[ImageSpan, ...]:
    return tuple(span(table, (30,) * length, start, **fields) for start, length in places)


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": [(2, 3)], "ids": (1, 2, ONE, ONE, 5, 6)},  # text where an image is said to lie
        {"images": [(2, 2)], "ids": (1, 2, ONE, ONE, ONE, 6)},  # an image's id outside of it
        {"images": [], "ids": (1, 2, ONE, 4)},
        {"images": [(1, 2), (2, 2)], "ids": (1, ONE, ONE, ONE, 5)},
        {"images": [(3, 1), (1, 1)], "ids": (1, ONE, 3, ONE, 5)},
        {"images": [(3, 3)], "ids": (1, 2, 3, ONE, ONE)},
        {"images": [(-1, 2)], "ids": (ONE, 2, 3, 4, ONE)},
        {"images": [(1, 0)], "ids": (1, 2, 3)},
        {"images": [(1, 2)], "ids": (1, ONE, ONE, 4), "rows": 2, "columns": 2},
        {"images": [(1, 2)], "ids": (1, ONE, ONE, 4), "rows": 2},
        {"images": [(1, 2)], "ids": (1, ONE, ONE, 4), "rows": -2, "columns": -1},
    ],
)
def test_images_that_do_not_hold_together(engine: Engine, table: Table, wrong: dict[str, Any]):
    grid = {name: wrong[name] for name in ("rows", "columns") if name in wrong}
    spans = _spans(table, *wrong["images"], **grid)
    engine.add(request("good"))
    engine.add(request("bad", wrong["ids"], images=spans))
    events = run(engine)
    end = check_order(events["bad"])
    assert isinstance(end, Failed)
    assert end.code == "invalid"
    assert finish(events["good"]).reason == "length"


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_vectors_of_another_size(engine: Engine, table: Table, cut: int):
    whole = span(table, (30, 31), 1)
    short = ImageSpan(start=1, length=2, embeddings=whole.embeddings[:-cut])
    any_width = engine.capabilities.image_width < 0
    engine.add(request("bad", (1, ONE, ONE, 4), images=(short,)))
    end = check_order(run(engine)["bad"])
    if any_width and len(short.embeddings) % 8 == 0:
        assert not isinstance(end, Failed)
        return
    assert isinstance(end, Failed)
    assert end.code == "invalid"
    assert "2 positions" in end.message
