"""How the contract suite gets an engine of each backend: a small artifact and a loader.

To put another backend under the same tests, add one entry to `BACKENDS`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from backends import onnx, scripted
from backends.engine.contract import Backend
from backends.scripted.make import write_artifact
from backends.scripted.script import EOS_ID, Rule, Script
from tests.backends.onnx.tiny_artifact import END_ID, write_tiny_artifact

TALK = tuple("the quick brown fox jumps over the lazy dog " * 20)


class UnderTest(NamedTuple):
    """`write` fills a folder with an artifact whose model answers at length to any prompt."""

    backend: Backend
    write: Callable[[pathlib.Path], object]
    end_id: int


def _write_scripted(folder: pathlib.Path) -> None:
    write_artifact(folder, Script(otherwise=Rule(pieces=TALK)))


BACKENDS = {
    "scripted": UnderTest(scripted.backend, _write_scripted, EOS_ID),
    "onnx": UnderTest(onnx.backend, write_tiny_artifact, END_ID),
}
