"""What the writer writes is read back by our reader, by gguf's and by llama.cpp."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import gguf as reference
import numpy as np
import pytest

from converters.gguf import GgufFile, TensorInfo, parse_header, read_header
from converters.gguf_types import ValueType
from converters.gguf_writer import NewTensor, TypedValue, plan_file, typed_metadata, write_file
from tests.converters.llama_cpp import ReferenceTokenizer
from tests.models.random_gguf import make_gguf

SCALARS = {
    ValueType.UINT8: 200, ValueType.INT8: -3, ValueType.UINT16: 60000, ValueType.INT16: -300,
    ValueType.UINT32: 1 << 31, ValueType.INT32: -70000, ValueType.FLOAT32: 0.5,
    ValueType.BOOL: True, ValueType.STRING: "é", ValueType.UINT64: 1 << 63,
    ValueType.INT64: -(1 << 40), ValueType.FLOAT64: 1e300,
}  # fmt: skip
METADATA = {
    "general.architecture": TypedValue(ValueType.STRING, "llama"),
    "general.alignment": TypedValue(ValueType.UINT32, 64),
    "a.words": TypedValue(ValueType.STRING, ["x", "", "é"]),
    "a.flags": TypedValue(ValueType.BOOL, np.array([True, False])),
    "a.none": TypedValue(ValueType.INT32, np.array([], np.int32)),
    "a.numbers": TypedValue(ValueType.INT16, np.array([1, -2], np.int16)),
    **{f"k.{kind.name}": TypedValue(kind, value) for kind, value in SCALARS.items()},
}
TENSORS = (
    NewTensor("odd", (3, 5), "F32"),
    NewTensor("blocks", (2, 256), "Q4_K"),
    NewTensor("experts", (2, 3, 64), "F16"),
)


def filling(tensor: TensorInfo) -> Iterable[bytes]:
    """Bytes that depend on the tensor, in slices of uneven length."""
    data = np.random.default_rng(tensor.nbytes).bytes(tensor.nbytes)
    yield from (data[:7], data[7:200], data[200:])


def rewritten(source: Path, path: Path) -> GgufFile:
    """`source` read and written again with the same weights."""
    header, data = read_header(source), source.read_bytes()
    old = {tensor.name: tensor for tensor in header.tensors}
    planned = plan_file(
        typed_metadata(header), [NewTensor(t.name, t.shape, t.type_name) for t in header.tensors]
    )
    with path.open("wb") as file:
        write_file(file, planned, lambda new: [data[old[new.name].offset :][: new.nbytes]])
    return read_header(path)


def test_our_reader_and_ggufs_read_what_was_written(tmp_path: Path) -> None:
    planned, path = plan_file(METADATA, TENSORS), tmp_path / "a.gguf"
    with path.open("wb") as file:
        digest = write_file(file, planned, filling)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size == planned.total_bytes
    header = read_header(path)
    assert header.tensors == planned.tensors and header.alignment == 64
    assert header.value_types == {key: typed.value_type for key, typed in METADATA.items()}
    for key, typed in METADATA.items():
        np.testing.assert_array_equal(header.metadata[key], typed.value)  # pyright: ignore[reportArgumentType]
    read = reference.GGUFReader(path)
    for key, typed in METADATA.items():
        assert read.fields[key].types[-1:] in ([typed.value_type.value], [9]) or key == "a.none"
    for tensor, theirs in zip(planned.tensors, read.tensors, strict=True):
        assert theirs.name == tensor.name and theirs.tensor_type.name == tensor.type_name
        assert tuple(reversed(theirs.shape.tolist())) == tensor.shape
        assert theirs.data_offset == tensor.offset
        assert theirs.data.tobytes() == b"".join(filling(tensor))


def test_a_file_written_again_is_the_same_file(tmp_path: Path) -> None:
    source = make_gguf(tmp_path / "source.gguf", types="Q4_K_M")
    again = rewritten(source, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == source.read_bytes()
    assert again.metadata["general.architecture"] == "llama"


def test_llama_cpp_loads_what_was_written(tmp_path: Path) -> None:
    rewritten(make_gguf(tmp_path / "source.gguf"), tmp_path / "again.gguf")
    model = ReferenceTokenizer(tmp_path / "again.gguf")
    assert model.decode(model.encode("hello")).strip() == "hello"
    model.close()


@pytest.mark.parametrize(
    ("metadata", "tensors", "what"),
    [
        ({"k": TypedValue(ValueType.UINT8, 256)}, (), "k: 256 is not of type UINT8"),
        ({"k": TypedValue(ValueType.INT32, 1.5)}, (), "k: 1.5 is not of type INT32"),
        ({"k": TypedValue(ValueType.STRING, 1)}, (), "k: 1 is not of type STRING"),
        ({"k": TypedValue(ValueType.FLOAT32, "x")}, (), "k: 'x' is not of type FLOAT32"),
        ({"general.alignment": TypedValue(ValueType.UINT32, 48)}, (), "48: not a power of two"),
        ({}, (NewTensor("t", (2, 100), "Q4_0"),), "do not divide into Q4_0 blocks"),
        ({}, (NewTensor("t", (2, 100), "Q9"),), "Q9 is no type of GGUF"),
        ({}, (NewTensor("t", (), "F32"),), "is not possible"),
        ({}, (NewTensor("t", (2, 2, 2, 2, 2), "F32"),), "is not possible"),
        ({}, (NewTensor("t" * 513, (2,), "F32"),), "at most 512 bytes"),
        ({}, (NewTensor("t", (2,), "F32"),) * 2, "the same name"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    metadata: dict[str, TypedValue], tensors: tuple[NewTensor, ...], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        plan_file(metadata, tensors)


@pytest.mark.parametrize("count", [11, 13])
def test_slices_of_another_size_are_refused(count: int) -> None:
    planned = plan_file({}, [NewTensor("t", (3,), "F32")])
    with pytest.raises(ValueError, match=f"'t': {count} bytes, 12 planned"):
        write_file(io.BytesIO(), planned, lambda tensor: [bytes(count)])


def test_a_plan_of_nothing_is_a_file() -> None:
    file = io.BytesIO()
    write_file(file, plan_file({}, ()), filling)
    assert parse_header(file.getvalue()).tensors == ()
