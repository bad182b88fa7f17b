from __future__ import annotations

import pathlib

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from backends.onnx.embedding import EmbeddingTable, input_table
from backends.types import EngineError
from converters.artifact import WEIGHTS_FILE, CodedTable, OnnxGraph, read_artifact
from converters.convert import Request, convert
from converters.progress import Progress
from tests.models.random_gguf import make_gguf

ROWS, COLUMNS, BLOCK = 6, 64, 32
GROUPS = COLUMNS // BLOCK
GENERATOR = np.random.default_rng(0)


def file_of(path: pathlib.Path, *arrays: np.ndarray) -> list[int]:
    """Writes the arrays behind each other, each on 64 bytes; their offsets."""
    data, offsets = bytearray(), []
    for array in arrays:
        data += b"\0" * (-len(data) % 64)
        offsets.append(len(data))
        data += array.tobytes()
    path.write_bytes(data)
    return offsets


def test_rows_of_another_table_stand_behind(tmp_path: pathlib.Path):
    first = GENERATOR.standard_normal((ROWS, COLUMNS), np.float32)
    second = GENERATOR.standard_normal((ROWS, BLOCK), np.float32)
    offsets = file_of(tmp_path / WEIGHTS_FILE, first, second)
    tables = [
        CodedTable(rows=ROWS, columns=array.shape[1], bits=32, codes_offset=offset)
        for array, offset in zip((first, second), offsets, strict=True)
    ]
    graph = OnnxGraph(
        embedding=tables[0], embedding_scale=2.0, per_block=tables[1], per_block_scale=16.0
    )
    found = input_table(tmp_path, graph).lookup([4, 0])
    assert found.shape == (2, graph.input_width)
    assert np.array_equal(found, np.concatenate([2 * first, 16 * second], 1)[[4, 0]])


def test_zeros_stand_where_images_would_add_something(tmp_path: pathlib.Path):
    table = GENERATOR.standard_normal((ROWS, COLUMNS), np.float32)
    file_of(tmp_path / WEIGHTS_FILE, table)
    graph = OnnxGraph(
        embedding=CodedTable(rows=ROWS, columns=COLUMNS, bits=32, codes_offset=0), deepstack=3
    )
    found = input_table(tmp_path, graph).lookup([4, 0])
    assert found.shape == (2, graph.input_width) == (2, 4 * COLUMNS)
    assert np.array_equal(found[:, :COLUMNS], table[[4, 0]])
    assert not found[:, COLUMNS:].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_correction", [False, True])
def test_coded_rows(tmp_path: pathlib.Path, bits: int, has_correction: bool):
    codes = GENERATOR.integers(0, 1 << bits, (ROWS, COLUMNS), np.uint8)
    packed = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
    scales = GENERATOR.random((ROWS, GROUPS), np.float32)
    correction = GENERATOR.standard_normal((GROUPS, ROWS), np.float32)
    offsets = file_of(tmp_path / "w", packed, scales, correction)
    table = CodedTable(
        rows=ROWS, columns=COLUMNS, bits=bits, block=BLOCK, codes_offset=offsets[0],
        scales_offset=offsets[1], correction_offset=offsets[2] if has_correction else -1,
    )  # fmt: skip
    ids = [5, 0, 5]
    found = EmbeddingTable(tmp_path / "w", table).lookup(ids)
    wide = np.repeat(scales, BLOCK, axis=1)
    zero = np.float32(2 ** (bits - 1))
    expected = wide * (codes.astype(np.float32) - zero)
    if has_correction:
        expected = expected + np.repeat(correction.T, BLOCK, axis=1)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected[ids])


def converted_table(folder: pathlib.Path, types: str) -> tuple[pathlib.Path, pathlib.Path]:
    """A GGUF whose embedding has K-quant blocks, and its artifact."""
    source = make_gguf(folder / "m.gguf", types=types)
    wanted = Request(source="0" * 64, target="onnx-cpu", final=folder / "artifact")
    with source.open("rb") as file:
        convert(file, wanted, Progress())
    return source, wanted.final


@pytest.mark.parametrize("types", ["Q5_K", "Q4_K", "Q6_K"])
def test_looked_up_rows_are_bit_equal_to_the_dequantised_ones(tmp_path: pathlib.Path, types: str):
    source, folder = converted_table(tmp_path, types)
    artifact = read_artifact(folder)
    assert artifact.onnx is not None
    tensor = next(t for t in GGUFReader(source).tensors if t.name == "token_embd.weight")
    assert tensor.tensor_type.name == types
    expected = dequantize(tensor.data, tensor.tensor_type)
    table = EmbeddingTable(folder / WEIGHTS_FILE, artifact.onnx.embedding)
    found = table.lookup(range(artifact.vocabulary))
    assert found.tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize(("bits", "dtype"), [(32, np.float32), (16, np.float16)])
def test_plain_rows_and_the_scale(tmp_path: pathlib.Path, bits: int, dtype: type):
    values = GENERATOR.standard_normal((ROWS, COLUMNS)).astype(dtype)
    file_of(tmp_path / "w", values)
    table = CodedTable(rows=ROWS, columns=COLUMNS, bits=bits, codes_offset=0)
    found = EmbeddingTable(tmp_path / "w", table, scale=8.0).lookup([1, 3])
    assert np.array_equal(found, values[[1, 3]].astype(np.float32) * 8)


@pytest.mark.parametrize(
    "table",
    [
        CodedTable(rows=ROWS + 1, columns=COLUMNS, bits=32, codes_offset=0),
        CodedTable(rows=ROWS, columns=COLUMNS, bits=32, codes_offset=64),
        CodedTable(rows=ROWS, columns=COLUMNS, bits=3, codes_offset=0, block=32),
        CodedTable(rows=ROWS, columns=COLUMNS, bits=8, codes_offset=0, block=0),
        CodedTable(rows=ROWS, columns=COLUMNS, bits=8, codes_offset=0, block=32),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path: pathlib.Path, table: CodedTable):
    file_of(tmp_path / "w", np.zeros((ROWS, COLUMNS), np.float32))
    with pytest.raises(EngineError) as caught:
        EmbeddingTable(tmp_path / "w", table)
    assert caught.value.code == "load"
