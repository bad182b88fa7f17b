"""Images in models that rotate by time, row and column: in chunks, from the cache, in batches."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from backends.image_span import ImageSpan, image_id
from backends.mlx.engine import MlxEngine
from backends.mlx.mlx_lm_images import Angles
from backends.types import Finished, GenerateRequest, TokenEvent
from converters.artifact import RopeTable
from tests.backends.mlx.engine_rig import answers, greedy, ids_of, load_tiny, prompt_of, run
from tests.backends.mlx.test_image_runs import by_hand
from tests.backends.mlx.test_mlx_lm_images import QWEN2, QWEN3
from tests.backends.mlx.tiny_mlx import EMBEDDING, write_tiny_mlx

FREQUENCIES = tuple(10000.0 ** (-pair / 8) for pair in range(8))
KINDS: dict[str, tuple[dict[str, Any], RopeTable]] = {
    "qwen2": (QWEN2, RopeTable(inverse_frequencies=FREQUENCIES, sections=(2, 3, 3))),
    "qwen3": (
        QWEN3,
        RopeTable(inverse_frequencies=FREQUENCIES, sections=(3, 3, 2), is_interleaved=True),
    ),
}
# Which of time, row and column each pair turns with.
TURNS = {"qwen2": (0, 0, 1, 1, 1, 2, 2, 2), "qwen3": (0, 1, 2, 0, 1, 2, 0, 1)}
GRIDS = {20: (4, 6), 60: (3, 3)}


@pytest.fixture(params=sorted(KINDS), scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp(kind)
    config, rope = KINDS[kind]
    write_tiny_mlx(folder, config, rope=rope)
    return folder


def asked(name: str, length: int = 90, *, blocks: int = 1, **fields: Any) -> GenerateRequest:
    """Of `length` ids, with images at GRIDS; `blocks` times as many numbers."""
    ids, spans = list(prompt_of(length)), list[ImageSpan]()
    for start, (rows, columns) in GRIDS.items():
        drawn = np.random.default_rng(start).normal(size=(rows * columns, blocks * EMBEDDING))
        data = drawn.astype("<f4").tobytes()
        end = start + rows * columns
        ids[start:end] = [image_id(hashlib.sha256(data).digest())] * (end - start)
        spans.append(
            ImageSpan(start=start, length=end - start, embeddings=data, rows=rows, columns=columns)
        )
    return greedy(name, tuple(ids), images=tuple(spans), **fields)


def angles_by_hand(kind: str, count: int) -> Angles:
    """As the models' papers say it: an image's time stands still, text goes on behind its longer side."""
    positions: list[tuple[int, int, int]] = []
    position = 0
    while len(positions) < count:
        rows, columns = GRIDS.get(len(positions), (0, 0))
        for row in range(rows):
            for column in range(columns):
                positions.append((position, position + row, position + column))
        if not rows:
            positions.append((position, position, position))
        position += max(rows, columns, 1)
    turns = np.array(positions)[:count, TURNS[kind]] * np.array(FREQUENCIES)
    return Angles(mx.array(np.cos(turns), mx.float32), mx.array(np.sin(turns), mx.float32))


@pytest.fixture
def engine(folder: pathlib.Path):
    engine = load_tiny(folder)
    yield engine
    engine.close()


@pytest.mark.parametrize("chunk", [7, 25, 100])
def test_chunks_are_rotated_as_all_at_once(
    engine: MlxEngine,
    folder: pathlib.Path,
    kind: str,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(engine._pace, "chunk", lambda wanted, is_decoding: min(wanted, chunk))
    request = asked("a")
    expected = by_hand(folder, KINDS[kind][0], request, lambda count: angles_by_hand(kind, count))
    assert answers(engine, request)["a"] == expected


def test_a_grid_is_not_a_row(engine: MlxEngine, folder: pathlib.Path):
    request = asked("a")
    flat = [
        ImageSpan(start=span.start, length=span.length, embeddings=span.embeddings)
        for span in request.images
    ]
    plain = greedy("b", request.prompt_ids, images=tuple(flat), cache_scope="apart")
    assert answers(engine, request)["a"] != answers(engine, plain)["b"]


def test_rows_with_images_share_batches_with_others(engine: MlxEngine):
    """Each row has as many positions less as its images lie beside each other."""
    requests = [asked("a", 90), greedy("b", prompt_of(80, 30)), asked("c", 75), asked("d", 100)]
    alone = {}
    for request in requests:
        alone |= answers(engine, request)
    for request in requests:
        engine.add(request)
    sizes, found = set[int](), dict[str, list[int]]()
    while engine.has_work():
        for event in engine.step():
            found.setdefault(event.request_id, []).extend(ids_of([event]))
        sizes |= {len(group.seats) for group in engine._groups}
    assert found == alone
    assert 4 in sizes
    assert len({tuple(ids) for ids in alone.values()}) == 4


@pytest.mark.parametrize("begin", [50, 58, 80])
def test_a_kept_prefix_is_gone_on_from(engine: MlxEngine, begin: int):
    request = asked("a")
    expected = answers(engine, greedy("b", request.prompt_ids, images=request.images))["b"]
    images = tuple(span for span in request.images if span.start < begin)
    kept = greedy("c", (*request.prompt_ids[:begin], 9, 9), 1, images=images, cache_scope="warm")
    answers(engine, kept)
    engine.add(greedy("d", request.prompt_ids, images=request.images, cache_scope="warm"))
    events = run(engine)["d"]
    assert _cached(events) == begin
    assert ids_of(events) == expected


def test_a_kept_prefix_is_gone_on_from_within_an_image(engine: MlxEngine):
    """Two ids are left to run of a prompt that is known: the last of an image and one behind it."""
    request = asked("a", 70)
    expected = answers(engine, request)["a"]
    engine.add(request)
    events = run(engine)["a"]
    assert _cached(events) == 68
    assert ids_of(events) == expected


def _cached(events: list[TokenEvent]) -> int:
    assert isinstance(events[-1], Finished)
    return events[-1].usage.cached_tokens


def test_vectors_for_the_first_blocks_are_added_behind_them(
    folder: pathlib.Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """DeepStack; the capabilities are those of a model with a projector that gives it."""
    request = asked("a", blocks=3)
    monkeypatch.setattr("backends.mlx.loading._image_width", lambda *_: 3 * EMBEDDING)
    engine = load_tiny(folder)
    expected = by_hand(folder, KINDS[kind][0], request, lambda count: angles_by_hand(kind, count))
    assert answers(engine, request)["a"] == expected
    spans = [
        ImageSpan(
            start=span.start, length=span.length, rows=span.rows, columns=span.columns,
            embeddings=np.frombuffer(span.embeddings, "<f4")
            .reshape(span.length, 3, EMBEDDING)[:, [0, 2, 1]].tobytes(),
        )
        for span in request.images
    ]  # fmt: skip
    other = greedy("b", request.prompt_ids, images=tuple(spans), cache_scope="apart")
    assert answers(engine, other)["b"] != expected
    engine.close()
