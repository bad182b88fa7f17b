"""A random model, converted: what the converter's tests on real files start from."""

from __future__ import annotations

import pathlib
from typing import Any

from converters.adapters.convert import AdapterRequest, convert_adapter
from converters.artifact import read_artifact
from converters.convert import Request, convert
from converters.progress import Progress
from tests.models.random_gguf import make_gguf


class SilentProgress(Progress):
    """Keeps the names of the phases and prints nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []

    def start(self, phase: str, total: int = 0) -> None:
        self.phases.append(phase)

    def advance(self, count: int) -> None:
        pass


def converted_file(
    path: pathlib.Path, *, precise: bool = False, target: str = "onnx-cpu"
) -> pathlib.Path:
    """The artifact's folder, beside the file."""
    final = path.with_name(f"{path.stem}{'-precise' if precise else ''}-{target}")
    request = Request(source="5e" * 32, target=target, final=final, precise=precise)
    with path.open("rb") as file:
        convert(file, request, SilentProgress())
    return final


def converted(
    folder: pathlib.Path, *, precise: bool = False, target: str = "onnx-cpu", **model: Any
) -> pathlib.Path:
    path = make_gguf(folder / "model.gguf", **model)
    return converted_file(path, precise=precise, target=target)


def adapted_file(
    adapter: pathlib.Path,
    base: pathlib.Path,
    folder: pathlib.Path,
    *,
    precise: bool = False,
    target: str = "onnx-cpu",
) -> pathlib.Path:
    """The folder of the adapter's artifact over the base's, which lies in `folder`."""
    final = folder.with_name(f"{folder.name}-{adapter.stem}")
    request = AdapterRequest(
        source="ad" * 32,
        base=read_artifact(folder).source,
        base_folder=folder,
        target=target,
        final=final,
        precise=precise,
    )
    with adapter.open("rb") as file, base.open("rb") as base_file:
        convert_adapter(file, base_file, request, SilentProgress())
    return final
