"""`weights.bin` against gguf's own dequantiser, bit for bit, and how errors are stated."""

from __future__ import annotations

import pathlib

import gguf
import numpy as np
import pytest

from converters.artifact import WEIGHTS_FILE, read_artifact
from converters.gguf import read_header
from converters.targets.onnx import weights
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file
from tests.parity.onnx_loop import looked_up

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def table_and_truth(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Every row of the embedding table as written, and as gguf dequantises it."""
    folder = converted_file(path)
    onnx = read_artifact(folder).onnx
    assert onnx is not None
    data = np.memmap(folder / WEIGHTS_FILE, np.uint8, "r")
    found = looked_up(data, onnx.embedding, list(range(onnx.embedding.rows)))
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    return found, gguf.quants.dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("types", TYPES + K_TYPES)
def test_rows_are_bit_equal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, types: str, is_tied: bool
):
    """Seven rows a slice, so that slices end inside the table."""
    monkeypatch.setattr(weights, "SLICE_ELEMENTS", 7 * 256)
    found, truth = table_and_truth(make_gguf(tmp_path / "m.gguf", types=types, is_tied=is_tied))
    np.testing.assert_array_equal(found.view(np.uint32), truth.view(np.uint32))


def test_split_halves_make_the_code_again():
    codes = np.arange(256, dtype=np.uint8)
    high, low = weights.split_codes(codes)
    halves = [np.stack([part & 15, part >> 4], axis=1).reshape(-1) for part in (high, low)]
    np.testing.assert_array_equal(halves[0] * 16 + halves[1], codes)


def test_a_correction_that_fp32_rounds_is_stated(tmp_path: pathlib.Path):
    """A scale of 63·65504 beside a minimum of 2^-24: their difference needs more than 24 bits."""
    path = make_gguf(tmp_path / "m.gguf", types="Q4_K")
    tensor = next(t for t in read_header(path).tensors if t.name == "blk.0.ffn_up.weight")
    block = np.zeros(144, np.uint8)
    block[:4] = np.array([65504.0, 2.0**-24], np.float16).view(np.uint8)
    block[4:16] = 63
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(block.tobytes())
    artifact = read_artifact(converted_file(path))
    record = next(one for one in artifact.tensors if one.name == tensor.name)
    assert record.exactness == "scale-rounded"
    assert 0 < record.max_error <= 63 * 2.0**-24
    assert 0 < record.rms_error < record.max_error
    assert artifact.exactness_counts()["scale-rounded"] == 1
