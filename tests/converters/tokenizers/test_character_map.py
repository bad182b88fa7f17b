"""A table that would lead the tokenizer out of its bounds is refused by name."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import normalizers

from converters.errors import MalformedFile
from converters.tokenizers.character_map import composes, read_character_map

KEY = "tokenizer.ggml.precompiled_charsmap"


def table(name: str = "nmt_nfkc") -> bytes:
    return (Path(sentencepiece.__file__).parent / "package_data" / f"{name}.bin").read_bytes()


def read(value: Any) -> bytes:
    return read_character_map({KEY: value})


def numbers(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def small(entry: int = 0, replacements: bytes = b"a\0") -> bytes:
    return struct.pack("<257I", 1024, entry, *[0] * 255) + replacements


@pytest.mark.parametrize("name", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"])
def test_the_published_tables_pass_and_compose(name: str) -> None:
    data = table(name)
    assert read(numbers(data)) == data == read(numbers(data).view(np.int8))
    assert composes(data)


def test_no_table_is_none() -> None:
    assert read_character_map({}) == b"" == read(numbers(b""))
    assert not composes(b"") and not composes(small())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "neither bytes nor base64"),
        ([1], "neither bytes nor base64"),
        (np.zeros(8, np.int32), "neither bytes nor base64"),
        (["@@"], "not base64"),
        ("é", "not base64"),
        (numbers(b"\1"), "does not fit"),
        (numbers(struct.pack("<I", 1 << 31) + bytes(9)), "does not fit"),
        (numbers(struct.pack("<I", 0) + bytes(9)), "does not fit"),
        (numbers(struct.pack("<I", 3) + bytes(9)), "does not fit"),
        (numbers(small(entry=1 << 20)), "out of the index"),
        (numbers(small(entry=(1 << 31) | 99)), "outside of the table"),
        (numbers(small(replacements=b"a")), "outside of the table"),
        (numbers(small(replacements=b"\xff\0")), "not UTF-8"),
        (
            numbers(small(entry=(1 << 31) | 1, replacements="é\0".encode())),
            "inside of a character",
        ),
    ],
)
def test_unsound_tables_are_refused(value: Any, message: str) -> None:
    with pytest.raises(MalformedFile, match=message):
        read(value)


def test_a_damaged_table_is_refused_or_runs() -> None:
    """The library ends the process's call with a panic where it leaves the table."""
    chance = random.Random(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(table())
        for _ in range(3):
            damaged[chance.randrange(4, len(damaged))] = chance.randrange(256)
        try:
            checked = read(numbers(bytes(damaged)))
        except MalformedFile:
            refused += 1
            continue
        step = normalizers.Precompiled(checked)
        step.normalize_str("".join(map(chr, range(1, 0x3000))))
    assert 0 < refused < 60
