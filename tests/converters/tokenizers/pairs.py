"""One GGUF read by our converter and by llama.cpp, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from backends.text.tokenizer import Tokenizer
from converters.gguf import Value, read_header
from converters.tokenizer import TokenizerFiles, build_tokenizer
from tests.converters.llama_cpp import ReferenceTokenizer, write_vocabulary_model

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class Pair(NamedTuple):
    files: TokenizerFiles
    ours: Tokenizer
    reference: ReferenceTokenizer

    def assert_equal(self, lines: list[str]) -> None:
        for line in lines:
            assert list(self.ours.encode(line)) == self.reference.encode(line), repr(line)

    def assert_framed_alike(self, line: str) -> None:
        before, after = self.ours.passage_frame()
        framed = [*before, *self.ours.encode(line), *after]
        assert framed == self.reference.encode(line, frames=True)


@contextlib.contextmanager
def read_by_both(folder: Path, keys: dict[str, Any]) -> Iterator[Pair]:
    files = build_tokenizer(write_and_read(folder, keys))
    reference = ReferenceTokenizer(folder / "model.gguf")
    try:
        yield Pair(files, Tokenizer(files.tokenizer_json, files.special), reference)
    finally:
        reference.close()


def write_and_read(folder: Path, keys: dict[str, Any]) -> dict[str, Value]:
    """The header as our reader gives it."""
    path = folder / "model.gguf"
    write_vocabulary_model(path, len(keys["tokenizer.ggml.tokens"]), keys)
    return read_header(path).metadata
