"""A random Hugging Face folder, imported: the GGUF beside it."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

from converters.artifact import MADE_GGUF
from converters.imports.folder import ModelFiles, find_files
from converters.imports.import_model import import_model
from converters.made_gguf import Made
from tests.models.hugging_face import make_folder
from tests.parity.converted import SilentProgress


def imported_folder(folder: pathlib.Path, final: pathlib.Path) -> Made:
    """Makes `final` with the GGUF in it."""
    with contextlib.ExitStack() as stack:
        files = ModelFiles(find_files(folder), stack)
        return import_model(files, folder.name, final, SilentProgress())


def imported(
    folder: pathlib.Path, family: str, *, dtype: str = "F32", shards: int = 1, **config: Any
) -> tuple[pathlib.Path, pathlib.Path]:
    """(the Hugging Face folder, the GGUF)."""
    source = make_folder(folder / "hf", family, dtype=dtype, shards=shards, **config)
    imported_folder(source, folder / "imported")
    return source, folder / "imported" / MADE_GGUF
