"""Which architectures there are: one file each, listed here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures import llama, qwen2
from converters.architectures.header import Header
from converters.architectures.model import ModelShape
from converters.errors import MalformedFile, Unsupported
from converters.gguf import GgufFile

ARCHITECTURES: dict[str, Callable[[Header], ModelShape]] = {
    "llama": llama.describe,
    "qwen2": qwen2.describe,
}


def describe(file: GgufFile) -> ModelShape:
    """The model in the file. Raises Unsupported by name, MalformedFile for what does not add up."""
    if not file.architecture:
        raise MalformedFile("the metadata key general.architecture is missing")
    if file.architecture not in ARCHITECTURES:
        raise Unsupported(f"the architecture {file.architecture!r} is not supported yet")
    return ARCHITECTURES[file.architecture](Header(file))
