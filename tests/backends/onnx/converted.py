"""Artifacts of random models, made by the converter itself."""

from __future__ import annotations

import pathlib

from converters.convert import Request, convert
from converters.progress import Progress
from tests.models.random_gguf import make_gguf


def converted(
    folder: pathlib.Path, architecture: str, types: str = "Q8_0", **shape
) -> pathlib.Path:
    path = make_gguf(folder / "m.gguf", architecture=architecture, types=types, **shape)
    wanted = Request(source="0" * 64, target="onnx-cpu", final=folder / "artifact")
    with path.open("rb") as file:
        convert(file, wanted, Progress())
    return wanted.final
