"""The header reader on good files, on every kind of bad one, and on bytes without sense."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters import gguf
from converters.errors import MalformedFile, Unsupported
from converters.gguf import parse_header, read_header

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def built(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    version: int = 3,
    data: int = 4096,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file of these parts, its data zeros, aligned to 32."""
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = struct.pack("<4sIQQ", b"GGUF", version, tensor_count, pair_count)
    body = head + b"".join(pairs) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + bytes(data)


GOOD = built(
    (
        pair("general.architecture", STRING, text("llama")),
        pair("a.flag", BOOL, b"\1"),
        pair("a.words", ARRAY, array(STRING, 2, text("x") + text("é"))),
        pair("a.numbers", ARRAY, array(F32, 2, struct.pack("<2f", 1.5, -2))),
    ),
    (tensor("t", (64, 2)), tensor("q", (256,), 12, 512)),
)


def test_every_scalar_type_is_read() -> None:
    values: dict[int, tuple[str, Any]] = {
        U8: ("<B", 200), I8: ("<b", -3), U16: ("<H", 60000), I16: ("<h", -300),
        U32: ("<I", 1 << 31), I32: ("<i", -70000), F32: ("<f", 0.5), U64: ("<Q", 1 << 63),
        I64: ("<q", -(1 << 40)), F64: ("<d", 1e300),
    }  # fmt: skip
    pairs = tuple(pair(f"k{kind}", kind, struct.pack(*row)) for kind, row in values.items())
    metadata = parse_header(built(pairs)).metadata
    assert metadata == {f"k{kind}": value for kind, (_, value) in values.items()}


def test_the_table_and_the_arrays_are_read() -> None:
    header = parse_header(GOOD)
    assert header.architecture == "llama" and header.version == 3 and header.alignment == 32
    assert header.metadata["a.flag"] is True
    assert header.metadata["a.words"] == ["x", "é"]
    assert np.array_equal(np.asarray(header.metadata["a.numbers"]), np.array([1.5, -2], np.float32))
    first, second = header.tensors
    assert (first.name, first.shape, first.type_name, first.nbytes) == ("t", (2, 64), "F32", 512)
    assert (second.type_name, second.nbytes, second.elements) == ("Q4_K", 144, 256)
    assert (first.offset, second.offset) == (header.data_offset, header.data_offset + 512)
    assert parse_header(GOOD.replace(b"GGUF\3", b"GGUF\2", 1)).version == 2


def test_a_file_of_the_reference_writer_is_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = reference.GGUFWriter(path, "qwen2")
    writer.add_custom_alignment(128)
    writer.add_array("a.list", [1, 2, 3])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.ones((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, read = read_header(path), reference.GGUFReader(path)
    assert header.alignment == 128 and header.size == path.stat().st_size
    found = [(t.name, t.type_name, t.offset, t.nbytes) for t in header.tensors]
    assert found == [
        (t.name, t.tensor_type.name, t.data_offset, int(t.n_bytes)) for t in read.tensors
    ]
    with path.open("rb") as file:
        file.seek(3)
        assert read_header(file).tensors == header.tensors
        assert file.tell() == 3


def test_sizes_of_types_are_ggmls() -> None:
    """gguf-py has Q8_1 wrong: its C structure has two fp16 numbers."""
    for kind, (block_size, type_size) in reference.GGML_QUANT_SIZES.items():
        known = gguf.GGML_TYPES[kind.value]
        assert known.name == kind.name
        if kind.name != "Q8_1":
            assert (known.block_size, known.type_size) == (block_size, type_size)


BAD: list[tuple[str, bytes, type[Exception]]] = [
    ("not a GGUF", b"GGML" + bytes(64), MalformedFile),
    ("version 1 ", built(version=1), Unsupported),
    ("version 4 ", built(version=4), Unsupported),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), Unsupported),
    ("tensors", built(counts=(1 << 63, 0)), MalformedFile),
    ("do not fit", built(counts=(1 << 16, 0)), MalformedFile),
    ("metadata keys", built(counts=(0, 1 << 40)), MalformedFile),
    ("metadata key of", built((struct.pack("<Q", 1 << 62),)), MalformedFile),
    ("inside the header", built((struct.pack("<Q", 60000),)), MalformedFile),
    ("appears twice", built((pair("k", U8, b"\1"), pair("k", U8, b"\2"))), MalformedFile),
    ("unknown metadata type 13", built((pair("k", 13, b""),)), MalformedFile),
    ("unknown type 99", built((pair("k", ARRAY, array(99, 1)),)), MalformedFile),
    ("arrays of arrays", built((pair("k", ARRAY, array(ARRAY, 1)),)), Unsupported),
    ("entries of k", built((pair("k", ARRAY, array(U8, 1 << 60)),)), MalformedFile),
    ("entries of k", built((pair("k", ARRAY, array(STRING, 600)),)), MalformedFile),
    ("not UTF-8", built((pair("k", ARRAY, array(STRING, 1, text(b"\xff"))),)), MalformedFile),
    ("not UTF-8", built((text(b"\xff") + struct.pack("<I", U8) + b"\1",)), MalformedFile),
    ("k of ", built((pair("k", STRING, struct.pack("<Q", 1 << 60)),)), MalformedFile),
    ("power of two", built((pair("general.alignment", U32, struct.pack("<I", 33)),)), MalformedFile),
    ("power of two", built((pair("general.alignment", U32, bytes(4)),)), MalformedFile),
    ("not an integer", built((pair("general.alignment", STRING, text("32")),)), MalformedFile),
    ("0 dimensions", built((), (tensor("t", ()),)), MalformedFile),
    ("5 dimensions", built((), (tensor("t", (1, 1, 1, 1, 1)),)), MalformedFile),
    ("impossible shape", built((), (tensor("t", (0, 4)),)), MalformedFile),
    ("impossible shape", built((), (tensor("t", (1 << 40, 1 << 40)),)), MalformedFile),
    ("impossible shape", built((), (tensor("t", (1 << 63, 2)),)), MalformedFile),
    ("do not divide", built((), (tensor("t", (255,), 12),)), MalformedFile),
    ("number 77", built((), (tensor("t", (4,), 77),)), Unsupported),
    ("Q4_0_4_4", built((), (tensor("t", (32,), 31),)), Unsupported),
    ("not aligned", built((), (tensor("t", (4,), 0, 4),)), MalformedFile),
    ("beyond the file", built((), (tensor("t", (4,), 0, 1 << 62),)), MalformedFile),
    ("beyond the file", built((), (tensor("t", (2048,)),)), MalformedFile),
    ("overlap", built((), (tensor("t", (64,)), tensor("u", (4,), 0, 32))), MalformedFile),
    ("'t' appears twice", built((), (tensor("t", (4,)), tensor("t", (4,), 0, 32))), MalformedFile),
    ("tensor name of", built((), (tensor("n" * 600, (4,)),)), MalformedFile),
]  # fmt: skip


@pytest.mark.parametrize(("message", "data", "error"), BAD, ids=[row[0] for row in BAD])
def test_bad_files_are_refused_by_name(message: str, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match=message):
        parse_header(data)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(MalformedFile, match="empty"):
        read_header(tmp_path / "empty")


@pytest.mark.parametrize("length", range(0, len(GOOD) - 4096, 7))
def test_a_cut_header_is_told_from_a_bad_one(length: int) -> None:
    """More bytes of the same file would do: what a pull needs to know."""
    with pytest.raises(gguf.TruncatedFile):
        parse_header(GOOD[:length])


def test_the_head_of_a_larger_file_is_enough() -> None:
    header = parse_header(GOOD[:-4096], size=len(GOOD))
    assert header.tensors == parse_header(GOOD).tensors
    with pytest.raises(gguf.TruncatedFile):
        parse_header(GOOD[:-4096])


def test_damaged_text_is_kept_with_a_warning() -> None:
    header = parse_header(built((pair("general.license", STRING, text(b"\xa9 me")),)))
    assert header.metadata["general.license"] == "\ufffd me"
    assert "general.license" in header.warnings[0]
    assert not parse_header(built((pair("k", STRING, text("\ufffd")),))).warnings


def test_values_of_another_type_are_refused() -> None:
    metadata = parse_header(GOOD).metadata
    assert gguf.text_value(metadata, "none", "x") == "x"
    assert gguf.float_value({"n": 3}, "n", 0.0) == 3.0
    for read in (
        lambda: gguf.text_value(metadata, "a.flag"),
        lambda: gguf.integer_value(metadata, "a.flag", 0),
        lambda: gguf.float_value(metadata, "a.flag", 0.0),
        lambda: gguf.flag_value(metadata, "a.words", default=False),
    ):
        with pytest.raises(MalformedFile, match=r"a\."):
            read()


def vocabulary(count: int) -> bytes:
    words = b"".join(text(f"token{index}") for index in range(count))
    return built((pair("tokenizer.ggml.tokens", ARRAY, array(STRING, count, words)),))


def test_large_vocabularies_are_read_quickly_in_bounded_memory() -> None:
    data = vocabulary(128_000)
    started = time.process_time()
    parse_header(data)
    assert time.process_time() - started < 0.3
    tracemalloc.start()
    try:
        parse_header(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * len(data)
    finally:
        tracemalloc.stop()


def test_a_claim_costs_no_memory() -> None:
    claims = [row[1] for row in BAD if "entries" in row[0] or "tensors" in row[0]]
    tracemalloc.start()
    try:
        for data in claims:
            with pytest.raises(MalformedFile):
                parse_header(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def accept_or_refuse(data: bytes, size: int | None = None) -> None:
    try:
        header = parse_header(data, size)
    except (MalformedFile, Unsupported):
        return
    end = len(data) if size is None else size
    assert all(tensor.offset + tensor.nbytes <= end for tensor in header.tensors)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_else(tail: bytes) -> None:
    accept_or_refuse(tail)
    accept_or_refuse(GOOD[:24] + tail)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 4097), st.sampled_from([0, 1, 8, 9, 127, 128, 255])),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 4096),
)
def test_no_damage_to_a_good_file_raises_anything_else(
    damage: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(GOOD)
    for position, value in damage:
        data[position] = value
    accept_or_refuse(bytes(data[: len(data) - cut]))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 4105), st.integers(0, (1 << 64) - 1))
def test_no_number_in_a_good_file_raises_anything_else(position: int, number: int) -> None:
    data: Any = bytearray(GOOD)
    struct.pack_into("<Q", data, position, number)
    accept_or_refuse(bytes(data))
