"""Imported folders beside two others: mlx-lm on the folder itself, llama.cpp on the GGUF made of it.

mlx-lm reads Hugging Face's names, shapes and configuration by code of its own: what it and the
imported file agree about was imported rightly. GELU and windows aside, both are plain float32.
"""

from __future__ import annotations

import pathlib

import numpy as np
import numpy.typing as npt
import pytest

from tests.models.hugging_face_families import FAMILIES
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.imported import imported
from tests.parity.onnx_loop import OnnxLoop
from tests.parity.test_encoders import EncoderLoop

pytestmark = pytest.mark.parity

CONTEXT = 256
COUNT = 8
DECODERS = sorted(name for name in FAMILIES if not name.endswith(("bert", "roberta", "sentences")))
# llama.cpp's GELU is a table of half floats.
# mlx-lm computes Gemma 1's GELU exactly, where the original and llama.cpp take the tanh form.
EXACT_GELU: dict[str, float] = {"gemma": 1e-3}
TABLED_GELU: dict[str, float] = {"gemma": 2e-3, "gemma2": 2e-3, "gemma3": 2e-3}
Row = npt.NDArray[np.float64]


def prompt_ids() -> list[int]:
    return [int(one) for one in np.random.default_rng(5).integers(300, 680, 48)]


def worst_of_top(found: Row, expected: Row) -> float:
    top = np.argsort(-expected)[:5]
    return float(np.abs(found[: len(expected)] - expected)[top].max())


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_are_those_of_mlx_lm(tmp_path: pathlib.Path, family: str) -> None:
    mlx_loop = pytest.importorskip("tests.parity.mlx_loop")
    source, gguf = imported(tmp_path, family)
    ids = prompt_ids()
    theirs = mlx_loop.MlxLoop(source)
    expected, chosen = theirs.logprobs(ids), theirs.greedy(ids, COUNT)
    ours = converted_file(gguf)
    difference = worst_of_top(OnnxLoop(ours, CONTEXT).logprobs(ids), expected)
    assert difference < EXACT_GELU.get(family, 3e-5)
    assert OnnxLoop(ours, CONTEXT).greedy(ids, COUNT) == chosen
    with LlamaCpp(gguf, context=CONTEXT) as model:
        assert worst_of_top(model.logprobs(ids, len(expected)), expected) < TABLED_GELU.get(
            family, 1e-4
        )
        found = model.greedy(ids, COUNT)
        assert found == chosen[: len(found)]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_floats_stay_as_they_are(tmp_path: pathlib.Path, dtype: str) -> None:
    mlx_loop = pytest.importorskip("tests.parity.mlx_loop")
    source, gguf = imported(tmp_path, "llama", dtype=dtype, shards=3)
    expected = mlx_loop.MlxLoop(source).logprobs(prompt_ids())
    found = OnnxLoop(converted_file(gguf, precise=True), CONTEXT).logprobs(prompt_ids())
    assert worst_of_top(found, expected) < 5e-5
    artifact = mlx_loop.MlxLoop(converted_file(gguf, target="mlx"))
    assert worst_of_top(artifact.logprobs(prompt_ids()), expected) < 5e-5


ENCODERS = sorted({*FAMILIES} - {*DECODERS})


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_are_those_of_llama_cpp(tmp_path: pathlib.Path, family: str) -> None:
    _, gguf = imported(tmp_path, family)
    loop = EncoderLoop(converted_file(gguf))
    texts = [[int(i) for i in np.random.default_rng(5).integers(300, 680, n)] for n in (48, 7)]
    with LlamaCpp(gguf, context=128, is_encoder=True) as model:
        for ids, found in zip(texts, loop.run(texts), strict=True):
            # llama.cpp's GELU is the tanh one, by a table of half floats.
            np.testing.assert_allclose(found, model.embed(ids), rtol=0, atol=2e-3)
