"""Models that give vectors beside llama.cpp: each text alone, and all of them padded in one batch."""

from __future__ import annotations

import pathlib

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from converters.artifact import GRAPH_FILE, WEIGHTS_FILE, read_artifact
from tests.models.random_architectures import ENCODERS
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.onnx_loop import looked_up, rope_inputs

pytestmark = pytest.mark.parity

CONTEXT = 256
PADDING = 9.0
LENGTHS = (48, 7, 21)


class EncoderLoop:
    """One loaded encoder artifact."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.artifact = read_artifact(folder)
        self.session = onnxruntime.InferenceSession(str(folder / GRAPH_FILE))
        self.weights = np.memmap(folder / WEIGHTS_FILE, np.uint8, "r")

    def run(self, texts: list[list[int]]) -> npt.NDArray[np.float32]:
        """[texts, width]; shorter texts are padded with what would show."""
        assert self.artifact.onnx is not None
        shape = (len(texts), max(map(len, texts)), self.artifact.embedding_length)
        embedded = np.full(shape, PADDING, np.float32)
        scale = np.float32(self.artifact.onnx.embedding_scale)
        for row, ids in enumerate(texts):
            table = self.artifact.onnx.embedding
            embedded[row, : len(ids)] = looked_up(self.weights, table, ids) * scale
        feeds = {
            "inputs_embeds": embedded,
            "lengths": np.array([len(ids) for ids in texts], np.int32),
            **rope_inputs(self.artifact, CONTEXT),
        }
        return np.asarray(self.session.run(["pooled"], feeds)[0])


def texts_of(vocabulary: int) -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [[int(i) for i in generator.integers(300, vocabulary, count)] for count in LENGTHS]


def cosine(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("architecture", sorted(ENCODERS))
def test_vectors_are_those_of_llama_cpp(tmp_path: pathlib.Path, architecture: str):
    kv_heads = 4 if "bert" in architecture else 2
    path = make_gguf(
        tmp_path / "model.gguf", architecture=architecture, types="F32", kv_heads=kv_heads
    )
    loop = EncoderLoop(converted_file(path))
    texts = texts_of(loop.artifact.vocabulary)
    assert loop.artifact.onnx is not None
    batch = loop.run(texts)
    assert batch.shape == (len(texts), loop.artifact.onnx.vector_size)
    with LlamaCpp(path, context=CONTEXT, is_encoder=True) as model:
        for row, ids in enumerate(texts):
            expected = model.embed(ids)[: batch.shape[1]]
            alone = loop.run([ids])[0].astype(np.float64)
            # llama.cpp's GELU is the tanh one, by a table of half floats.
            np.testing.assert_allclose(alone, expected, rtol=0, atol=2e-3)
            assert cosine(alone, expected) > 1 - 1e-6
            np.testing.assert_allclose(batch[row], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("types", ["Q8_0", "Q4_K", "F16"])
@pytest.mark.parametrize("architecture", ["bert", "nomic-bert-moe"])
def test_quantised_encoders_stay_near(tmp_path: pathlib.Path, architecture: str, types: str):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types=types, kv_heads=4)
    loop = EncoderLoop(converted_file(path))
    texts = texts_of(loop.artifact.vocabulary)
    with LlamaCpp(path, context=CONTEXT, is_encoder=True) as model:
        for row, ids in zip(loop.run(texts), texts, strict=True):
            assert cosine(row.astype(np.float64), model.embed(ids)) > 0.999
