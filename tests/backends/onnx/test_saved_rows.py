"""Rows that come back from disk into another process's engine, without a changed number."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from backends.engine import prefix_files, saved_prefixes
from backends.image_span import ImageSpan
from backends.onnx.engine import OnnxEngine
from tests.backends.onnx.engine_rig import (
    EXACT,
    Watch,
    answer,
    ask,
    load,
    run,
    step_until_sampled,
    usage_of,
)
from tests.backends.onnx.test_prefix_cache import artifact, text

__all__ = ["artifact"]


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model computes faster than any disk reads."""
    monkeypatch.setattr(prefix_files, "LEAST_GAIN", 0.0)


def saving(artifact: pathlib.Path, cache: pathlib.Path, **fields: object) -> OnnxEngine:
    return load(artifact, cache_folder=str(cache), prefix_cache_bytes=10**7, **fields)


def rest(engine: OnnxEngine) -> int:
    count = 0
    while engine.rest():
        count += 1
    return count


def files(cache: pathlib.Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_later_process_reads_back_and_says_the_same(
    artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = saving(artifact, tmp_path)
    watch = Watch(first)
    cold, _ = answer(first, ask("a", text(1, 150), 20, sampling=EXACT))
    assert files(tmp_path) == []  # nothing is written while there is work
    assert rest(first) == 3
    assert len(files(tmp_path)) == 1
    assert rest(first) == 0
    first.close()
    logits = watch.logits
    second = saving(artifact, tmp_path)
    watch = Watch(second)
    warm, usage = answer(second, ask("b", text(1, 150), 20, sampling=EXACT))
    assert (usage.cached_tokens, usage.prompt_tokens) == (148, 150)
    assert warm == cold
    assert all(np.array_equal(*pair) for pair in zip(logits, watch.logits, strict=True))


def test_nobody_who_decodes_waits_for_a_long_read(
    artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saving(artifact, tmp_path)
    answer(first, ask("a", text(1, 150), 5))
    rest(first)
    first.close()
    monkeypatch.setattr(saved_prefixes, "UNNOTICED_SECONDS", 0.0)
    busy = saving(artifact, tmp_path)
    busy.add(ask("talking", text(2, 20), 200))
    step_until_sampled(busy, "talking")
    busy.add(ask("b", text(1, 150), 5))
    assert usage_of(run(busy)["b"]).cached_tokens == 0
    _, usage = answer(saving(artifact, tmp_path), ask("c", text(1, 150), 5))
    assert usage.cached_tokens == 148


def test_a_second_turn_goes_on_from_the_disk(
    artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = saving(artifact, tmp_path)
    said, _ = answer(first, ask("a", text(1, 100), 30))
    rest(first)
    first.close()
    second = saving(artifact, tmp_path)
    _, usage = answer(second, ask("b", [*text(1, 100), *said, *text(2, 20)], 5))
    assert usage.cached_tokens == 129
    _, usage = answer(second, ask("c", [*text(1, 80), *text(3, 50)], 5))
    assert usage.cached_tokens == 80  # memory has it by now
    third = saving(artifact, tmp_path)
    _, usage = answer(third, ask("d", text(1, 130), 5, cache_scope="somebody"))
    assert usage.cached_tokens == 0
    _, usage = answer(third, ask("e", text(1, 130), 5, reproducible=True))
    assert usage.cached_tokens == 0


def test_images_are_not_written(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The folder of the files says nothing of the tower that made the vectors."""
    engine = saving(artifact, tmp_path)
    width = engine.capabilities.image_width
    shown = ImageSpan(start=70, length=5, embeddings=bytes(4 * 5 * width))
    ids = [*text(1, 70), *[-9] * 5, *text(2, 75)]
    answer(engine, ask("a", ids, 5, images=(shown,)))
    assert (rest(engine), files(tmp_path)) == (0, [])
    answer(engine, ask("b", ids[:70], 5))
    assert rest(engine) > 0


def test_a_row_that_is_used_again_is_not_written(
    artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    engine = saving(artifact, tmp_path)
    said, _ = answer(engine, ask("a", text(1, 150), 30))
    assert engine.rest()  # one block of it
    engine.add(ask("b", [*text(1, 150), *said, *text(2, 20)], 200))
    step_until_sampled(engine, "b")
    assert not engine.rest()
    assert files(tmp_path) == []
    engine.close()


def test_another_runtime_or_a_damaged_file_is_not_read(
    artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    engine = saving(artifact, tmp_path)
    answer(engine, ask("a", text(1, 150), 5))
    rest(engine)
    engine.close()
    other = saving(artifact, tmp_path, threads=2)
    _, usage = answer(other, ask("b", text(1, 150), 5))
    assert usage.cached_tokens == 0
    (path,) = (path for path in tmp_path.rglob("*.kv"))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    engine = saving(artifact, tmp_path)
    said, usage = answer(engine, ask("c", text(1, 150), 5, sampling=EXACT))
    assert usage.cached_tokens == 0
    assert said == answer(load(artifact), ask("c", text(1, 150), 5, sampling=EXACT))[0]


def test_it_is_off_unless_a_quota_is_given(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    engine = load(artifact, cache_folder=str(tmp_path))
    answer(engine, ask("a", text(1, 150), 5))
    assert not engine.rest()
    assert list(tmp_path.iterdir()) == []
