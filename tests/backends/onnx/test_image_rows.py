"""Rows with images in a model that rotates by sections: as one run over tables made by hand says."""

from __future__ import annotations

import pathlib

import numpy as np
import onnxruntime as ort
import pytest

from backends.image_span import ImageSpan
from backends.onnx.embedding import input_table
from backends.onnx.engine import OnnxEngine
from backends.types import GenerateRequest, Sampled
from converters.artifact import GRAPH_FILE, read_artifact
from tests.backends.onnx.device_rig import on_device
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
from tests.backends.onnx.tiny_artifact import (
    BLOCKS,
    EMBEDDING,
    HEAD_SIZE,
    KV_HEADS,
    write_tiny_artifact,
)

SECTIONS = (2, 3, 3)
ONE, OTHER = -11, -12
TOP = 20


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Without integer activations, whose rounding would hide small differences."""
    folder = tmp_path_factory.mktemp("sections")
    write_tiny_artifact(folder, sections=SECTIONS, accuracy_level=0)
    return folder


def image(start: int, rows: int, columns: int, seed: int = 1) -> ImageSpan:
    length = rows * columns
    vectors = np.random.default_rng(seed).standard_normal((length, EMBEDDING), np.float32)
    return ImageSpan(
        start=start, length=length, embeddings=vectors.tobytes(), rows=rows, columns=columns
    )


def shown(name: str, length: int, *images: ImageSpan, seed: int = 0, **fields) -> GenerateRequest:
    ids = [20 + (7 * place + seed) % 200 for place in range(length)]
    for span in images:
        identity = ONE if span.embeddings == image(0, span.rows, span.columns).embeddings else OTHER
        ids[span.start : span.start + span.length] = [identity] * span.length
    return ask(name, ids, images=images, top_logprobs=TOP, **fields)


def positions(request: GenerateRequest, length: int) -> np.ndarray:
    """[length, 3], counted one after the other."""
    found: list[tuple[int, int, int]] = []
    grids = {span.start: (span.rows, span.columns) for span in request.images}
    at = 0
    while len(found) < length:
        rows, columns = grids.get(len(found), (0, 0))
        found += [(at, at + row, at + column) for row in range(rows) for column in range(columns)]
        if not rows:
            found.append((at, at, at))
        at += max(rows, columns, 1)
    return np.array(found[:length])


def in_one_run(folder: pathlib.Path, request: GenerateRequest, said: list[int]) -> np.ndarray:
    """Logits [ids said, vocabulary] at the position before each of them."""
    artifact = read_artifact(folder)
    assert artifact.onnx is not None
    ids = [*request.prompt_ids, *said]
    values = input_table(folder, artifact.onnx).lookup(np.maximum(ids, 0))
    for span in request.images:
        vectors = np.frombuffer(span.embeddings, np.float32).reshape(span.length, -1)
        values[span.start : span.start + span.length] = vectors
    section = np.repeat((0, 1, 2), SECTIONS)
    frequencies = np.array(artifact.rope["global"].inverse_frequencies)
    angles = positions(request, len(ids))[:, section] * frequencies
    empty = np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float32)
    wanted = np.arange(len(request.prompt_ids) - 1, len(ids) - 1)
    feeds = {
        "inputs_embeds": values[None],
        "seqlens_k": np.array([len(ids) - 1], np.int32),
        "total": np.array(len(ids), np.int32),
        "logit_rows": wanted,
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    feeds |= {f"past_{kind}.{n}": empty for kind in ("key", "value") for n in range(BLOCKS)}
    session = ort.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], feeds)
    return np.asarray(logits)


def check(folder: pathlib.Path, engine: OnnxEngine, request: GenerateRequest) -> int:
    """Runs it alone; what is likely at every answered id is the reference's. Returns cached ids."""
    engine.add(request)
    events = run(engine)[request.request_id]
    said = ids_of(events)
    logits = in_one_run(folder, request, said).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    answered = [event for event in events if isinstance(event, Sampled)]
    for event, line in zip(answered, expected, strict=True):
        assert len(event.top) == TOP
        # The head rounds to 8 bits.
        assert max(abs(logprob - line[token_id]) for token_id, logprob in event.top) < 1e-2
    return usage_of(events).cached_tokens


PROMPTS = {
    "one": shown("one", 90, image(10, 4, 6)),
    "wide": shown("wide", 60, image(0, 1, 30)),
    "tall and last": shown("tall and last", 60, image(30, 30, 1)),
    "three": shown("three", 300, image(5, 3, 3), image(14, 9, 7, 2), image(200, 2, 8)),
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("on", ["cpu", "device"])
def test_a_row_turns_as_its_images_say(artifact: pathlib.Path, name: str, on: str):
    engine = load(artifact) if on == "cpu" else on_device(artifact)
    assert check(artifact, engine, PROMPTS[name]) == 0
    engine.close()


def test_chunks_may_end_within_an_image(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    engine = load(artifact)
    monkeypatch.setattr(engine._pace, "chunk", lambda left, is_decoding: min(left, 13))
    check(artifact, engine, PROMPTS["three"])


@pytest.mark.parametrize("sampling", [GREEDY, EXACT])
def test_what_is_kept_goes_on_within_and_behind_images(artifact: pathlib.Path, sampling):
    engine = load(artifact)
    first, second = image(10, 4, 6), image(100, 5, 5, 2)
    check(artifact, engine, shown("a", 150, first, second, sampling=sampling))
    cached = check(artifact, engine, shown("b", 150, first, second, sampling=sampling))
    assert cached >= 140
    # The first image is the same, and then comes something else.
    other = shown("c", 150, first, image(80, 3, 8, 2), sampling=sampling)
    assert check(artifact, engine, other) == 80
    # The same vectors at another place of the count are another prefix.
    moved = shown("d", 150, image(11, 4, 6), second, sampling=sampling)
    assert check(artifact, engine, moved) == 0
    assert check(artifact, engine, shown("e", 150, sampling=sampling)) == 0


def test_an_image_of_one_position_turns_as_text_does(artifact: pathlib.Path):
    request = shown("a", 60, image(9, 1, 1))
    engine = load(artifact)
    check(artifact, engine, request)
    alike, _ = answer(engine, request)
    plain = ImageSpan(start=9, length=1, embeddings=request.images[0].embeddings)
    assert (
        answer(engine, ask("b", request.prompt_ids, images=(plain,), cache_scope="b"))[0] == alike
    )


def test_rows_with_images_run_beside_batches_of_text(artifact: pathlib.Path):
    """They come and go in the middle of rows that decode together, which are moved meanwhile."""
    requests = [
        shown(
            f"r{n}",
            40 + 20 * n,
            *([image(3 + n, 4, 5, n)] if n % 2 else []),
            seed=n,
            max_tokens=9 + 7 * n,
        )
        for n in range(7)
    ]
    alone = {}
    for request in requests:
        engine = load(artifact)
        alone[request.request_id] = answer(engine, request)[0]
        engine.close()
    engine = load(artifact)
    watch = Watch(engine)
    for request in requests:
        engine.add(request)
    events = run(engine)
    assert {name: ids_of(found) for name, found in events.items()} == alone
    assert max(rows for rows, _ in watch.shapes) > 1
    for request in requests:
        assert check(artifact, engine, request) >= 16


def test_rows_with_the_same_images_share_tables_that_grow(artifact: pathlib.Path):
    engine = load(artifact)
    request = shown("a", 60, image(10, 4, 6), max_tokens=300)
    engine.add(request)
    engine.add(shown("b", 90, image(10, 4, 6), seed=3, max_tokens=300))
    engine.add(shown("c", 60, image(11, 4, 6), max_tokens=300))
    step_until_sampled(engine, "c")
    tables = {seat.generation.id: seat.tables for seat in engine._seats()}
    assert tables["a"] is tables["b"] is not tables["c"]
    assert tables["a"] is not None
    first = tables["a"].values(90)
    assert first is tables["a"].values(90)
    assert tables["a"].values(512) is first
    run(engine)
    del tables
    assert len(engine._images._tables._living) == 0


def test_guesses_run_over_a_rows_own_tables(artifact: pathlib.Path):
    """A repeating answer behind an image: some runs have several ids, and say the same."""
    engine = load(artifact)
    engine._costs.saw(1, 1.0)
    for ids in range(2, 9):
        engine._costs.saw(ids, 1.0)  # a guess costs nothing
    watch = Watch(engine)
    request = shown("a", 60, image(10, 4, 6), max_tokens=200)
    said, _ = answer(engine, request)
    assert any(ids > 1 for _, ids in watch.shapes[1:])
    assert said == in_one_run(artifact, request, said).argmax(axis=1).tolist()


def test_cancelled_rows_leave_nothing_wrong(artifact: pathlib.Path):
    engine = load(artifact)
    request = shown("a", 200, image(100, 4, 6), max_tokens=50)
    engine.add(request)
    step_until_sampled(engine, "a")
    engine.cancel("a")
    assert usage_of(run(engine)["a"]).completion_tokens >= 1
    assert check(artifact, engine, shown("b", 200, image(100, 4, 6))) >= 190
