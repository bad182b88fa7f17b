"""The reader of safetensors headers: what the library writes, and what a stranger might."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from converters.errors import ConversionError, MalformedFile, Unsupported
from converters.imports.safetensors import StoredTensor, read_tensors


def read(folder: pathlib.Path, data: bytes) -> list[StoredTensor]:
    path = folder / "a.safetensors"
    path.write_bytes(data)
    with path.open("rb") as file:
        return read_tensors(file.fileno(), path.name)


def framed(header: Any, body: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: str = "F32", shape: Any = (2, 2), span: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def test_what_the_library_writes_is_read(tmp_path: pathlib.Path) -> None:
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(5, dtype=np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "ids": np.arange(3, dtype=np.int64),
    }
    save_file(arrays, tmp_path / "m.safetensors", {"format": "pt"})
    data = (tmp_path / "m.safetensors").read_bytes()
    found = {tensor.name: tensor for tensor in read(tmp_path, data)}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        tensor = found[name]
        assert tensor.shape == array.shape
        assert data[tensor.offset : tensor.offset + tensor.nbytes] == array.tobytes()


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"abc", MalformedFile, "too short"),
        ((1 << 60).to_bytes(8, "little") + b"{}", MalformedFile, "a header of"),
        (framed(b"[1, 2]"), MalformedFile, "not readable"),
        (framed(b"{" * 100_000), MalformedFile, "not readable|too deeply"),
        (framed(b'{"a":' * 100_000), MalformedFile, "too deeply"),
        (framed(b"\xff{}"), MalformedFile, "not readable"),
        (framed(b'{"a": 1, "a": 2}'), MalformedFile, "'a' appears twice"),
        (framed({"a": {"dtype": "F32"}}), MalformedFile, "not readable"),
        (framed({"a": entry("F9")}), Unsupported, "'F9', which is not known"),
        (framed({"a": entry(shape=[2] * 9)}), MalformedFile, "9 dimensions"),
        (framed({"a": entry(shape=[-2, -2])}), MalformedFile, "impossible shape"),
        (framed({"a": entry(shape=[1 << 62, 1 << 62])}), MalformedFile, "impossible shape"),
        (framed({"a": entry(span=(0, 15))}), MalformedFile, "15 bytes for 4 of F32"),
        (framed({"a": entry(span=(16, 0))}), MalformedFile, "outside of the file"),
        (framed({"a": entry(span=(-16, 0))}), MalformedFile, "outside of the file"),
        (framed({"a": entry(span=(64, 80))}), MalformedFile, "outside of the file"),
        (framed({"a": entry(), "b": entry(span=(8, 24))}), MalformedFile, "'a' and 'b' overlap"),
        (framed({"": entry()}), MalformedFile, "name has 0 characters"),
        (framed({"n" * 600: entry()}), MalformedFile, "name has 600 characters"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: pathlib.Path, data: bytes, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        read(tmp_path, data)


def test_too_many_tensors(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.imports.safetensors.MAX_TENSORS", 2)
    header = {name: entry(span=(16 * place, 16 * place + 16)) for place, name in enumerate("abc")}
    with pytest.raises(MalformedFile, match="3 tensors, over 2"):
        read(tmp_path, framed(header))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
SPANS = st.tuples(st.integers(-8, 80), st.integers(-8, 80))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F64", "I8", "F4", "X"]),
        "shape": st.lists(st.integers(-1, 6), max_size=4),
        "data_offsets": SPANS.map(list),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=4), ENTRIES | JSON_VALUES, max_size=4), st.binary())
def test_nothing_else_ever_comes_out(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], body: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = framed(header, body)
    try:
        found = read(folder, data)
    except ConversionError:
        return
    for tensor in found:
        assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(data)
