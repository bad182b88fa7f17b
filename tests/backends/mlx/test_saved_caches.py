"""Caches of every kind that come back from disk into another engine, without a changed bit."""

from __future__ import annotations

import gc
import logging
import pathlib
import weakref
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from backends.engine import prefix_files
from backends.engine.prefix_files import PrefixFiles
from backends.engine.prefix_format import BLOCK_POSITIONS, PIECE_BYTES
from backends.engine.prefix_index import Prefix
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.engine import MlxEngine
from backends.mlx.saved_caches import SavedCaches, form_of, knows_caches
from backends.types import Finished, GenerateRequest, Sampling, Usage
from tests.backends.mlx.engine_rig import KINDS, greedy, ids_of, load_tiny, prompt_of, run
from tests.backends.mlx.tiny_mlx import WINDOWS, write_tiny_mlx

EXACT = Sampling(temperature=0.0, seed=1)


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model computes faster than any disk reads."""
    monkeypatch.setattr(prefix_files, "LEAST_GAIN", 0.0)


@pytest.fixture(params=sorted(KINDS), scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    write_tiny_mlx(folder, KINDS[request.param])
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("llama")
    write_tiny_mlx(folder)
    return folder


def saving(folder: pathlib.Path, cache: pathlib.Path, **fields: Any) -> MlxEngine:
    return load_tiny(folder, cache_folder=str(cache), prefix_cache_bytes=10**8, **fields)


def answer(engine: MlxEngine, request: GenerateRequest) -> tuple[list[int], Usage]:
    engine.add(request)
    events = run(engine)[request.request_id]
    assert isinstance(events[-1], Finished), events[-1]
    return ids_of(events), events[-1].usage


def rest_and_close(engine: MlxEngine) -> int:
    count = 0
    while engine.rest():
        count += 1
    engine.close()
    return count


def files(cache: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_later_process_reads_back_and_says_the_same(folder: pathlib.Path, tmp_path: pathlib.Path):
    first = saving(folder, tmp_path)
    cold, _ = answer(first, greedy("a", prompt_of(200), 20))
    assert files(tmp_path) == []  # nothing is written while there is work
    assert rest_and_close(first) > 0
    second = saving(folder, tmp_path)
    warm, usage = answer(second, greedy("b", prompt_of(200), 20))
    assert (usage.cached_tokens, usage.prompt_tokens) == (198, 200)
    assert warm == cold


def test_a_second_turn_goes_on_from_the_disk(folder: pathlib.Path, tmp_path: pathlib.Path):
    first = saving(folder, tmp_path)
    said, _ = answer(first, greedy("a", prompt_of(100), 30))
    follow_up = (*prompt_of(100), *said, *prompt_of(20, 60))
    rest_and_close(first)
    second = saving(folder, tmp_path)
    found, usage = answer(second, greedy("b", follow_up, 20))
    assert usage.cached_tokens == 129
    assert found == answer(load_tiny(folder), greedy("c", follow_up, 20))[0]


def test_a_system_prompt_serves_the_next_process(folder: pathlib.Path, tmp_path: pathlib.Path):
    system = prompt_of(100)
    first = saving(folder, tmp_path)
    answer(first, greedy("a", system + prompt_of(90, 30), 3, system_length=100))
    rest_and_close(first)
    second = saving(folder, tmp_path)
    other = greedy("b", system + prompt_of(50, 90), 9, system_length=100, cache_scope="else")
    found, usage = answer(second, other)
    assert usage.cached_tokens == 100
    assert found == answer(load_tiny(folder), other)[0]
    _, usage = answer(second, greedy("c", system + prompt_of(90, 30), 3, cache_scope="third"))
    assert usage.cached_tokens == 0


def test_who_gives_a_seed_gets_the_numbers_of_the_grid(
    folder: pathlib.Path, tmp_path: pathlib.Path
):
    first = saving(folder, tmp_path)
    exact = {"sampling": EXACT, "prompt_ids": prompt_of(300), "max_tokens": 20}
    cold, _ = answer(first, GenerateRequest(request_id="a", **exact))
    rest_and_close(first)
    second = saving(folder, tmp_path)
    warm, usage = answer(second, GenerateRequest(request_id="b", **exact))
    assert (warm, usage.cached_tokens) == (cold, 256)
    third = saving(folder, tmp_path)
    _, usage = answer(third, GenerateRequest(request_id="c", reproducible=True, **exact))
    assert usage.cached_tokens == 0


def test_a_window_that_is_not_full_is_cut_like_any_other(tmp_path: pathlib.Path):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    write_tiny_mlx(folder, WINDOWS | {"sliding_window": 150})
    first = saving(folder, cache)
    answer(first, greedy("a", prompt_of(120), 20))
    rest_and_close(first)
    second = saving(folder, cache)
    wanted = greedy("b", (*prompt_of(90), 5, 6, 7), 150)  # the window turns over
    found, usage = answer(second, wanted)
    assert usage.cached_tokens == 90
    assert found == answer(load_tiny(folder), wanted)[0]


def test_a_row_that_is_used_again_is_not_written(llama: pathlib.Path, tmp_path: pathlib.Path):
    engine = saving(llama, tmp_path)
    said, _ = answer(engine, greedy("a", prompt_of(150), 30))
    assert engine.rest()  # one block of it
    engine.add(greedy("b", (*prompt_of(150), *said, *prompt_of(20, 60)), 100))
    engine.step()
    assert not engine.rest()
    assert files(tmp_path) == []


def test_a_damaged_file_is_not_read(folder: pathlib.Path, tmp_path: pathlib.Path):
    engine = saving(folder, tmp_path)
    cold, _ = answer(engine, greedy("a", prompt_of(150), 10))
    rest_and_close(engine)
    for path in tmp_path.rglob("*.kv"):
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
    found, usage = answer(saving(folder, tmp_path), greedy("b", prompt_of(150), 10))
    assert (found, usage.cached_tokens) == (cold, 0)


def test_what_cannot_be_put_together_again_is_refused_by_name(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(internals, "REBUILT_KINDS", frozenset({"ChunkedKVCache"}))
    with caplog.at_level(logging.WARNING):
        engine = saving(folder, tmp_path)
    assert "KVCache cannot be put together again" in caplog.text
    answer(engine, greedy("a", prompt_of(150), 5))
    assert rest_and_close(engine) == 0
    assert files(tmp_path) == []


def test_it_is_off_unless_a_quota_is_given(llama: pathlib.Path, tmp_path: pathlib.Path):
    engine = load_tiny(llama, cache_folder=str(tmp_path))
    answer(engine, greedy("a", prompt_of(150), 5))
    assert rest_and_close(engine) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_model_goes_with_the_engine(llama: pathlib.Path, tmp_path: pathlib.Path):
    engine = saving(llama, tmp_path)
    answer(engine, greedy("a", prompt_of(100), 5))
    model = weakref.ref(engine._loaded())
    engine.close()
    gc.collect()
    assert model() is None
    assert not engine.rest()


# ---- bit for bit ----


class Row:
    def __init__(self, caches: internals.Caches, length: int) -> None:
        self.caches = caches
        self.length = length


def model_of(kind: str, numbers: mx.Dtype):
    mx.random.seed(3)
    module = internals.submodule(f"models.{KINDS[kind]['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(KINDS[kind]))
    model.set_dtype(numbers)
    return model


def parts_as_bytes(caches: internals.Caches, length: int) -> Iterator[tuple[object, ...]]:
    for part in internals.parts_of(caches, length):
        for array in (*part.growing, *part.whole):
            flat = None if array is None else np.asarray(mx.contiguous(array).view(mx.uint8))
            yield part.kind, part.counts, None if flat is None else (flat.shape, flat.tobytes())


@pytest.mark.parametrize("numbers", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_bit_changes(kind: str, numbers: mx.Dtype, tmp_path: pathlib.Path):
    model, ids = model_of(kind, numbers), prompt_of(150)
    caches = internals.make_caches(model)
    for chunk in (ids[:70], ids[70:149], ids[149:]):
        model(mx.array([chunk]), cache=caches)
    internals.evaluate(caches)
    place = tmp_path / "m" / "f" / "prefixes"
    disk = PrefixFiles(tmp_path, place, quota_bytes=10**8, knows=knows_caches(model))
    saved = SavedCaches(model, disk, lambda: 1.0)
    saved.note(Row(caches, 150), Prefix(ids), 0)
    while saved.rest():
        pass
    again = PrefixFiles(tmp_path, place, quota_bytes=10**8, knows=knows_caches(model))
    saved = SavedCaches(model, again, lambda: 1.0)
    found = saved.find(Prefix(ids), most=150, held=0, exact=False, is_quiet=True)
    assert found is not None and found.shared == 150
    restored = saved.restored(found)
    assert restored is not None
    assert list(parts_as_bytes(restored, 150)) == list(parts_as_bytes(caches, 150))
    ids = mx.array([[9]])
    assert mx.array_equal(model(ids, cache=restored), model(ids, cache=caches)).item()


def test_the_states_of_large_models_are_written_in_pieces(tmp_path: pathlib.Path):
    model = model_of("hybrid", mx.float32)
    caches = internals.make_caches(model)
    model(mx.array([prompt_of(70)]), cache=caches)
    internals.evaluate(caches)
    states = next(part for part in internals.parts_of(caches, 70) if part.whole)
    assert states.whole[0] is not None
    caches[0].cache[0] = mx.random.normal(
        (1, 3, PIECE_BYTES // 4)
    )  # three pieces, and what follows
    disk = PrefixFiles(
        tmp_path, tmp_path / "m" / "f" / "p", quota_bytes=10**8, knows=lambda form: True
    )
    saved = SavedCaches(model, disk, lambda: 1.0)
    saved.note(Row(caches, 70), Prefix(prompt_of(70)), 0)
    writes = 0
    while saved.rest():
        writes += 1
    form = form_of(internals.parts_of(caches, 70))
    assert writes == -(-70 // BLOCK_POSITIONS) + -(-form.whole_bytes // PIECE_BYTES)
    assert form.whole_bytes > 3 * PIECE_BYTES
    found = saved.find(Prefix(prompt_of(70)), most=70, held=0, exact=False, is_quiet=True)
    assert found is not None
    restored = saved.restored(found)
    assert restored is not None
    assert list(parts_as_bytes(restored, 70)) == list(parts_as_bytes(caches, 70))


def test_caches_of_another_model_are_unknown():
    rows = {}
    for kind in KINDS:
        model = model_of(kind, mx.float32)
        caches = internals.make_caches(model)
        model(mx.array([prompt_of(70)]), cache=caches)
        rows[kind] = knows_caches(model), form_of(internals.parts_of(caches, 70))
    for kind, (knows, _) in rows.items():
        assert [other for other, (_, form) in rows.items() if knows(form)] == [kind]
