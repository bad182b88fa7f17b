"""Requests with images on the MLX engine: alone, cut, cached, together, on disk, at the end."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from backends.image_span import ImageSpan, image_id
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.engine import MlxEngine
from backends.mlx.mlx_lm_images import ImageInputs, RunImages
from backends.types import Failed, Finished, GenerateRequest, Sampling
from tests.backends.mlx.engine_rig import (
    KINDS,
    answers,
    greedy,
    ids_of,
    load_tiny,
    prompt_of,
    run,
)
from tests.backends.mlx.tiny_mlx import EMBEDDING, write_tiny_mlx

# What gemma's modules multiply text's embeddings by.
FACTORS = {"windows": EMBEDDING**0.5}


@pytest.fixture(params=sorted(KINDS), scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp(kind)
    write_tiny_mlx(folder, KINDS[kind])
    return folder


@pytest.fixture
def engine(folder: pathlib.Path) -> Iterator[MlxEngine]:
    engine = load_tiny(folder)
    yield engine
    engine.close()


def drawn(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, EMBEDDING)).astype(np.float32)


def with_image(
    name: str,
    before: tuple[int, ...],
    vectors: np.ndarray,
    after: tuple[int, ...],
    *,
    is_bidirectional: bool = False,
    **fields: Any,
) -> GenerateRequest:
    data = np.ascontiguousarray(vectors, "<f4").tobytes()
    token_id = image_id(hashlib.sha256(data).digest())
    span = ImageSpan(
        start=len(before), length=len(vectors), embeddings=data, is_bidirectional=is_bidirectional
    )
    prompt = (*before, *[token_id] * len(vectors), *after)
    return greedy(name, prompt, images=(span,), **fields)


def finish(events: list) -> Finished:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


def test_an_image_of_the_tables_own_rows_is_answered_as_text(engine: MlxEngine, kind: str):
    prompt = prompt_of(70)
    model: Any = engine._loaded()
    rows = np.array(model.model.embed_tokens.weight)[list(prompt[20:50])] * FACTORS.get(kind, 1.0)
    expected = answers(engine, greedy("text", prompt))["text"]
    request = with_image("image", prompt[:20], rows, prompt[50:])
    assert answers(engine, request)["image"] == expected


def test_another_image_is_answered_otherwise_and_shares_nothing(engine: MlxEngine):
    first, other = (with_image("a", prompt_of(40), drawn(30, n), prompt_of(9)) for n in (1, 2))
    one = answers(engine, first)["a"]
    engine.add(other)
    events = run(engine)["a"]
    assert ids_of(events) != one
    assert finish(events).usage.cached_tokens <= 40
    assert answers(engine, first)["a"] == one


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_a_cold_and_a_cached_image_are_answered_alike(
    engine: MlxEngine, folder: pathlib.Path, kind: str, is_bidirectional: bool
):
    if kind == "hybrid" and is_bidirectional:
        pytest.skip("states know no later positions")
    image = drawn(40)
    fields: dict[str, Any] = {"is_bidirectional": is_bidirectional}
    request = with_image("b", prompt_of(50), image, prompt_of(30, 60), **fields)
    cold = load_tiny(folder)
    expected = answers(cold, request)["b"]
    cold.close()
    answers(engine, with_image("a", prompt_of(50), image, prompt_of(20), count=2, **fields))
    engine.add(request)
    events = run(engine)["b"]
    assert ids_of(events) == expected
    if kind == "llama":
        assert finish(events).usage.cached_tokens >= 90


def test_a_prefix_is_not_cut_within_positions_that_see_each_other(tmp_path: pathlib.Path):
    """Two ids are left to run of a prompt that is known: the last one of the image would be among them."""
    write_tiny_mlx(tmp_path)
    engine = load_tiny(tmp_path)
    for is_bidirectional, cached in ((False, 89), (True, 50)):
        request = with_image(
            "a", prompt_of(50), drawn(40, cached), (9,), is_bidirectional=is_bidirectional
        )
        cold = answers(engine, request)
        engine.add(request)
        events = run(engine)["a"]
        assert finish(events).usage.cached_tokens == cached
        assert {"a": ids_of(events)} == cold
    engine.close()


@pytest.mark.parametrize("is_exact", [False, True])
def test_positions_that_see_each_other_are_fed_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, is_exact: bool
):
    """Against the model called by hand, with all of the prompt in one run. Windows of 32."""
    write_tiny_mlx(tmp_path, KINDS["windows"])
    engine = load_tiny(tmp_path)
    monkeypatch.setattr(engine._pace, "chunk", lambda wanted, is_decoding: min(wanted, 25))
    sampling = Sampling(temperature=0.0, seed=1 if is_exact else None)
    request = with_image("a", prompt_of(235), drawn(60), prompt_of(50), is_bidirectional=True)
    request = msgspec.structs.replace(request, sampling=sampling)
    chunks, found = list[int](), list[int]()
    engine.add(request)
    while engine.has_work():
        chunks += [seat.length for seat in engine._prefilling]
        found += ids_of(engine.step())
    assert not any(235 < chunk < 295 for chunk in chunks), chunks
    assert 295 in chunks
    assert len(found) == 12
    assert found == by_hand(tmp_path, KINDS["windows"], request)
    engine.close()


def by_hand(
    folder: pathlib.Path, config: dict[str, Any], request: GenerateRequest, places: Any = None
) -> list[int]:
    """Greedy, every id from a run over all before it: no cache, no chunks, no batch.

    `places` of S ids gives the angles of them, where they are not those of their order.
    """
    engine = load_tiny(folder)
    model: Any = engine._loaded()
    inputs = ImageInputs(model, config, is_sectioned=places is not None)
    ids, answer = list(request.prompt_ids), list[int]()
    while len(answer) < request.max_tokens:
        given, angles = _given_by_hand(request, ids), places(len(ids)) if places else None
        with inputs.giving(given, angles):
            plain = mx.array([[max(token_id, 0) for token_id in ids]])
            logits = model(plain, cache=internals.make_caches(model))[0, -1]
        ids.append(int(np.array(logits).argmax()))
        answer.append(ids[-1])
    engine.close()
    return answer


def _given_by_hand(request: GenerateRequest, ids: list[int]) -> RunImages:
    blocks = len(request.images[0].embeddings) // (4 * EMBEDDING * request.images[0].length)
    vectors = np.zeros((blocks, len(ids), EMBEDDING), np.float32)
    spans: list[tuple[int, int]] = []
    for span in request.images:
        end = span.start + span.length
        rows = np.frombuffer(span.embeddings, "<f4").reshape(-1, blocks, EMBEDDING)
        for block in range(blocks):
            vectors[block, span.start : end] = rows[:, block]
        spans += [(span.start, end)] * span.is_bidirectional
    is_image = mx.array([[token_id < 0] for token_id in ids])
    first, *added = map(mx.array, vectors)
    return RunImages(first, is_image, tuple(added), tuple(spans))


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_a_prompt_may_end_with_an_image(engine: MlxEngine, kind: str, is_bidirectional: bool):
    if kind == "hybrid" and is_bidirectional:
        pytest.skip("states know no later positions")
    fields: dict[str, Any] = {"is_bidirectional": is_bidirectional, "count": 1}
    names = ("r3", "r4", "r5")
    requests = [
        with_image(name, prompt_of(30), drawn(20, int(name[1])), (), **fields) for name in names
    ]
    alone = {}
    for request in requests:
        alone |= answers(engine, request)
    assert answers(engine, *requests) == alone
    # What follows is what follows the same prompt with the answer in it.
    first = requests[0]
    longer = with_image("next", prompt_of(30), drawn(20, 3), tuple(alone["r3"]), **fields)
    fields["count"] = 2
    two = with_image("two", prompt_of(30), drawn(20, 3), (), **fields)
    assert answers(engine, two)["two"][1:] == answers(engine, longer)["next"]
    assert first.images[0].start == 30


def test_rows_with_and_without_images_share_batches_and_answers(engine: MlxEngine):
    requests = [
        with_image("a", prompt_of(30), drawn(20, 1), prompt_of(10)),
        greedy("b", prompt_of(60, 30)),
        with_image("c", prompt_of(20), drawn(30, 2), prompt_of(12)),
    ]
    alone = {}
    for request in requests:
        alone |= answers(engine, request)
    assert answers(engine, *requests) == alone
    assert len({tuple(ids) for ids in alone.values()}) == 3


def test_on_disk_are_only_prompts_without_images(
    tmp_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
):
    write_tiny_mlx(tmp_path)
    place = tmp_path_factory.mktemp("kept")
    kept = {"cache_folder": str(place), "prefix_cache_bytes": 1 << 30}
    request = with_image("b", prompt_of(150), drawn(60), prompt_of(60))
    cold = load_tiny(tmp_path, **kept)
    expected = answers(cold, request)["b"]
    while cold.rest():
        pass
    assert not list(place.rglob("*.kv"))
    answers(cold, greedy("text", prompt_of(160), 2, cache_scope="apart"))
    answers(cold, greedy("text", prompt_of(160), 2))
    while cold.rest():
        pass
    cold.close()
    reader = load_tiny(tmp_path, **kept)
    reader.add(request)
    events = run(reader)["b"]
    assert ids_of(events) == expected
    assert finish(events).usage.cached_tokens == 150
    reader.close()


def test_what_cannot_look_at_all_of_an_image_says_so(tmp_path: pathlib.Path):
    write_tiny_mlx(tmp_path, KINDS["hybrid"])
    engine = load_tiny(tmp_path)
    engine.add(with_image("a", prompt_of(9), drawn(9), prompt_of(9), is_bidirectional=True))
    (event,) = run(engine)["a"]
    assert isinstance(event, Failed)
    assert event.code == "unsupported"
    engine.close()
