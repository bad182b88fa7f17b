"""How the contract suite gets an engine of each backend: a small artifact and a loader.

To put another backend under the same tests, add one entry to `BACKENDS`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from backends import mlx, onnx, scripted
from backends.engine.contract import Backend, Engine
from backends.mlx.engine import MlxEngine
from backends.mlx.loading import load_engine
from backends.scripted.make import write_artifact
from backends.scripted.script import EOS_ID, Rule, Script
from backends.types import Load
from tests.backends.mlx.tiny_mlx import END_ID as MLX_END_ID
from tests.backends.mlx.tiny_mlx import write_tiny_mlx
from tests.backends.onnx.tiny_artifact import END_ID, write_tiny_artifact

TALK = tuple("the quick brown fox jumps over the lazy dog " * 20)


class UnderTest(NamedTuple):
    """`write` fills a folder with an artifact whose model answers at length to any prompt."""

    backend: Backend
    write: Callable[[pathlib.Path], object]
    end_id: int


def _write_scripted(folder: pathlib.Path) -> None:
    write_artifact(folder, Script(otherwise=Rule(pieces=TALK)))


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
    "scripted": UnderTest(scripted.backend, _write_scripted, EOS_ID),
    "mlx": UnderTest(mlx.backend, write_tiny_mlx, MLX_END_ID),
    "mlx-batches": UnderTest(MlxInBatches(), write_tiny_mlx, MLX_END_ID),
    "onnx": UnderTest(onnx.backend, write_tiny_artifact, END_ID),
}
