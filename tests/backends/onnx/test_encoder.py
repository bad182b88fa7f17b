from __future__ import annotations

import pathlib

import numpy as np
import pytest

from backends.engine.texts import plan_runs
from backends.onnx import backend
from backends.onnx.encoder import OnnxEncoder, means
from backends.types import EngineError, Failed, GenerateRequest, Load
from tests.backends.onnx.converted import converted

TEXTS = [tuple(3 + (i * 7 + n) % 500 for i in range(n)) for n in (5, 60, 2, 33, 5, 1)]


@pytest.fixture(scope="module", params=["bert", "bert-cls", "nomic-bert"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = converted(tmp_path_factory.mktemp("encoder"), request.param)
    engine = backend.load(Load(request_id="l", backend="onnx", artifact=str(folder), threads=1))
    assert isinstance(engine, OnnxEncoder)
    return engine


def vectors(encoder: OnnxEncoder, texts: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [np.frombuffer(vector, "<f4") for vector in encoder.embed(texts)]


def test_each_text_gets_the_vector_it_has_alone(encoder: OnnxEncoder):
    together = vectors(encoder, TEXTS)
    alone = [vectors(encoder, [ids])[0] for ids in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == (256,)
        assert np.abs(one - other).max() < 1e-5
    different = [vector for place, vector in enumerate(together) if place != 4]
    for place, vector in enumerate(different):
        others = [other for at, other in enumerate(different) if at != place]
        assert min(np.abs(vector - other).max() for other in others) > 1e-2


def test_it_says_what_it_is_and_generates_nothing(encoder: OnnxEncoder):
    assert (encoder.capabilities.embed, encoder.capabilities.generate) == (True, False)
    encoder.add(GenerateRequest(request_id="a", prompt_ids=(3, 4)))
    assert encoder.has_work()
    (event,) = encoder.step()
    assert isinstance(event, Failed)
    assert event.code == "unsupported"
    assert not encoder.has_work()
    assert encoder.step() == []


@pytest.mark.parametrize(
    ("ids", "code"), [((), "invalid"), ((1_000_000,), "invalid"), ((3,) * 5000, "too_long")]
)
def test_texts_that_cannot_be_are_refused(encoder: OnnxEncoder, ids: tuple[int, ...], code: str):
    with pytest.raises(EngineError) as caught:
        encoder.embed([(3, 4), ids])
    assert caught.value.code == code


def test_runs_hold_texts_of_like_length_and_no_more_than_they_may():
    lengths = [5, 900, 6, 7, 800, 1, 2000, 5]
    runs = list(plan_runs(lengths, 1000))
    assert sorted(place for run in runs for place in run) == list(range(8))
    assert [[lengths[place] for place in run] for run in runs] == [
        [1, 5, 5, 6, 7], [800], [900], [2000]
    ]  # fmt: skip
    assert list(plan_runs([], 10)) == []


def test_means_leave_padding_out():
    hidden = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    found = means(hidden, np.array([1, 3], np.int32))
    assert found.tolist() == [[0, 1], [8, 9]]


def test_models_that_generate_give_the_last_hidden_state(tmp_path: pathlib.Path):
    folder = converted(tmp_path, "qwen3")
    engine = backend.load(
        Load(request_id="l", backend="onnx", artifact=str(folder), rows=2, threads=1)
    )
    if not engine.capabilities.embed:
        pytest.skip("this build's converter writes no hidden states")
    long = tuple(3 + i % 500 for i in range(700))
    first, again, longer = (np.frombuffer(v, "<f4") for v in engine.embed([long, long, long[:5]]))
    assert first.shape == (256,)
    assert np.abs(first).max() > 0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, longer)
    assert engine.status().kv_bytes == engine.status().cached_bytes == 0
