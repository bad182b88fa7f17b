"""How the contract suite gets an engine of each backend: a small artifact and a loader.

To put another backend under the same tests, add one entry to `BACKENDS`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import msgspec
import numpy as np
from numpy.typing import NDArray

from backends import mlx, onnx, scripted
from backends.engine.contract import Backend, Engine
from backends.mlx.engine import MlxEngine
from backends.mlx.loading import load_engine
from backends.onnx.embedding import input_table
from backends.scripted.make import write_artifact
from backends.scripted.script import EOS_ID, VOCABULARY, Rule, Script
from backends.types import Load
from converters.artifact import MLX_WEIGHTS_FILE, read_artifact
from tests.backends.mlx.tiny_mlx import END_ID as MLX_END_ID
from tests.backends.mlx.tiny_mlx import write_tiny_mlx
from tests.backends.onnx.tiny_artifact import END_ID, write_tiny_artifact

TALK = tuple("the quick brown fox jumps over the lazy dog " * 20)


class UnderTest(NamedTuple):
    """`write` fills a folder with an artifact whose model answers at length to any prompt.

    `table` gives its float32 [vocabulary, width] embeddings: what ids are to the model, as vectors.
    """

    backend: Backend
    write: Callable[[pathlib.Path], object]
    end_id: int
    table: Callable[[pathlib.Path], NDArray[np.float32]]


def _write_scripted(folder: pathlib.Path) -> None:
    write_artifact(folder, Script(otherwise=Rule(pieces=TALK)))


def _scripted_table(folder: pathlib.Path) -> NDArray[np.float32]:
    """A script looks at no vectors."""
    return np.zeros((VOCABULARY, 4), np.float32)


def _onnx_table(folder: pathlib.Path) -> NDArray[np.float32]:
    onnx = read_artifact(folder).onnx
    assert onnx is not None
    return input_table(folder, onnx).lookup(range(onnx.embedding.rows))


def _mlx_table(folder: pathlib.Path) -> NDArray[np.float32]:
    weights = mx.load(str(folder / MLX_WEIGHTS_FILE))
    assert isinstance(weights, dict)
    return np.array(weights["model.embed_tokens.weight"], np.float32)


class MlxInBatches:
    """MLX as it runs on a GPU, on whatever is here: rows of like length share a run."""

    name = "mlx"
    target = "mlx"

    def load(self, load: Load) -> Engine:
        engine = load_engine(load, has_batches=True)
        assert isinstance(engine, MlxEngine)
        engine.capabilities = msgspec.structs.replace(engine.capabilities, device="cpu, in batches")
        return engine


BACKENDS = {
    "scripted": UnderTest(scripted.backend, _write_scripted, EOS_ID, _scripted_table),
    "mlx": UnderTest(mlx.backend, write_tiny_mlx, MLX_END_ID, _mlx_table),
    "mlx-batches": UnderTest(MlxInBatches(), write_tiny_mlx, MLX_END_ID, _mlx_table),
    "onnx": UnderTest(onnx.backend, write_tiny_artifact, END_ID, _onnx_table),
}
