"""Models that give vectors, on MLX, beside llama.cpp and beside the ONNX target."""

from __future__ import annotations

import pathlib

import mlx.core as mx
import numpy as np
import pytest

from backends.mlx.encoders import load_encoder
from backends.mlx.loading import load_engine
from backends.types import EngineError, Load
from tests.models.random_architectures import ENCODERS
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.test_encoders import CONTEXT, EncoderLoop, cosine, texts_of

pytestmark = pytest.mark.parity

# llama.cpp's GELU is the tanh one, by a table of half floats.
NEAR = 1e-5
# ONNX Runtime's operator for experts has that one, too.
OTHER_GELU = {"nomic-bert-moe"}


def made(folder: pathlib.Path, architecture: str, types: str) -> pathlib.Path:
    return make_gguf(
        folder / "model.gguf",
        architecture=architecture,
        types=types,
        kv_heads=4 if "bert" in architecture else 2,
    )


def vectors(path: pathlib.Path, texts: list[list[int]]) -> list[np.ndarray]:
    encoder = load_encoder(converted_file(path, target="mlx"), mx.float32)
    found = encoder.embed([tuple(ids) for ids in texts])
    return [np.frombuffer(vector, "<f4").astype(np.float64) for vector in found]


@pytest.mark.parametrize("architecture", sorted(ENCODERS))
def test_vectors_are_those_of_llama_cpp_and_of_the_other_target(
    tmp_path: pathlib.Path, architecture: str
):
    path, texts = made(tmp_path, architecture, "F32"), texts_of(700)
    together = vectors(path, texts)
    onnx = EncoderLoop(converted_file(path)).run(texts)
    with LlamaCpp(path, context=CONTEXT, is_encoder=True) as model:
        for found, other, ids in zip(together, onnx, texts, strict=True):
            expected = model.embed(ids)[: len(found)]
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
            assert cosine(found, expected) > 1 - NEAR
            near = 5e-4 if architecture in OTHER_GELU else 2e-5
            np.testing.assert_allclose(found, other, rtol=0, atol=near)


@pytest.mark.parametrize("types", ["Q8_0", "Q4_K", "F16"])
@pytest.mark.parametrize("architecture", ["bert", "gemma-embedding", "nomic-bert-moe"])
def test_quantised_encoders_stay_near(tmp_path: pathlib.Path, architecture: str, types: str):
    path, texts = made(tmp_path, architecture, types), texts_of(700)
    with LlamaCpp(path, context=CONTEXT, is_encoder=True) as model:
        for found, ids in zip(vectors(path, texts), texts, strict=True):
            assert cosine(found, model.embed(ids)) > 0.999


@pytest.mark.parametrize("architecture", ["bert", "gemma-embedding", "qwen3-rank"])
def test_the_engine_gives_the_same(tmp_path: pathlib.Path, architecture: str):
    path = made(tmp_path, architecture, "F32")
    texts = [tuple(ids) for ids in texts_of(700)]
    folder = converted_file(path, target="mlx")
    engine = load_engine(Load(request_id="l", backend="mlx", artifact=str(folder)))
    assert (engine.capabilities.generate, engine.capabilities.embed) == (False, True)
    assert engine.embed(texts) == load_encoder(folder, mx.float32).embed(texts)
    with pytest.raises(EngineError, match="exceeds the context length"):
        engine.embed([(1,) * (engine.capabilities.context_length + 1)])
    engine.close()


def test_padding_changes_nothing(tmp_path: pathlib.Path):
    """Far from any text, where a window sees padding only."""
    path = made(tmp_path, "gemma-embedding", "F32")
    texts = [*texts_of(700), [333]]
    encoder = load_encoder(converted_file(path, target="mlx"), mx.float32)
    together = encoder.embed([tuple(ids) for ids in texts])
    for vector, ids in zip(together, texts, strict=True):
        alone = np.frombuffer(encoder.embed([tuple(ids)])[0], "<f4")
        np.testing.assert_allclose(np.frombuffer(vector, "<f4"), alone, rtol=0, atol=1e-5)
