"""A whole file: keys kept, types mixed, weights near, memory bounded, nothing left when it fails."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess

import numpy as np
import psutil
import pytest
from gguf import GGUFReader, dequantize

from converters.artifact import MADE_GGUF, MADE_NOTES, QUANTISED_TYPES
from converters.gguf import read_header
from converters.gguf_types import ValueType
from converters.quantise.mixes import FILE_TYPES, choose_types
from tests.converters.llama_cpp import ReferenceTokenizer
from tests.converters.quantise.reference_mixes import write_zeros
from tests.converters.random_headers import random_header
from tests.converters.test_main import ROOT, command, run
from tests.models.random_gguf import make_gguf

# Root mean square of the errors over that of the weights.
LARGEST_ERRORS = {"Q8_0": 0.008, "Q4_0": 0.11, "Q4_K_M": 0.085, "Q5_K_M": 0.045, "Q6_K": 0.025}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_gguf(tmp_path_factory.mktemp("source") / "source.gguf", types="F16", blocks=3)


def quantise_command(
    source: pathlib.Path, final: pathlib.Path, file_type: str, *more: str
) -> list[str]:
    return command("quantise", "--input", source, "--output", final, "--type", file_type, *more)


def weights_of(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for tensor in GGUFReader(path).tensors
    }


@pytest.mark.parametrize("file_type", LARGEST_ERRORS)
def test_a_file_becomes_smaller_and_says_the_same(
    source: pathlib.Path, tmp_path: pathlib.Path, file_type: str
) -> None:
    final = tmp_path / "results" / "one"
    code, lines = run(quantise_command(source, final, file_type.lower()))
    assert code == 0
    phases = list(dict.fromkeys(line["phase"] for line in lines[:-1]))
    assert phases == ["plan", "write", "verify", "sync"]
    assert {path.name for path in final.iterdir()} == {MADE_GGUF, MADE_NOTES}
    result = final / MADE_GGUF
    assert lines[-1] == {"done": True, "file_bytes": result.stat().st_size}
    before, after = read_header(source), read_header(result)
    assert {tensor.name: tensor.type_name for tensor in after.tensors} == {
        name: choice.type_name for name, choice in choose_types(before, file_type).items()
    }
    assert after.metadata["general.file_type"] == FILE_TYPES[file_type].number
    assert after.metadata["general.quantization_version"] == 2
    assert after.value_types["general.file_type"] is ValueType.UINT32
    for key, value in before.metadata.items():
        np.testing.assert_array_equal(after.metadata[key], value)  # pyright: ignore[reportArgumentType]
        assert after.value_types[key] is before.value_types[key]
    expected, found = weights_of(source), weights_of(result)
    for name, weights in expected.items():
        error = np.sqrt(np.mean((found[name] - weights) ** 2) / np.mean(weights**2))
        assert error <= LARGEST_ERRORS[file_type], name
    model = ReferenceTokenizer(result)
    model.close()


def test_brain_floats_and_fp32_are_sources_and_results(tmp_path: pathlib.Path) -> None:
    first = make_gguf(tmp_path / "first.gguf", types="F32", blocks=1)
    for index, file_type in enumerate(("BF16", "Q8_0")):
        assert run(quantise_command(first, tmp_path / f"r{index}", file_type))[0] == 0
        first = tmp_path / f"r{index}" / MADE_GGUF
    types = {tensor.type_name for tensor in read_header(first).tensors}
    assert types == {"Q8_0", "F32"}


def test_rows_that_do_not_fill_blocks_are_told(tmp_path: pathlib.Path) -> None:
    source = make_gguf(tmp_path / "a.gguf", types="F16", blocks=1, embedding=192, feed_forward=256)
    code, _ = run(quantise_command(source, tmp_path / "r", "Q4_K_S"))
    (note,) = json.loads((tmp_path / "r" / MADE_NOTES).read_text())
    assert code == 0
    assert "Q5_0 instead of Q4_K" in note and "blk.0.attn_k.weight" in note
    assert "blk.0.ffn_down.weight" not in note


@pytest.mark.parametrize(
    ("types", "file_type", "expected"),
    [
        ("F16", "Q9_X", "unsupported quantization type Q9_X - supported types are F32, F16, BF16"),
        ("Q4_K", "Q8_0", "quantization is only supported for F16, BF16 and F32 models"),
        ("Q8_0", "Q8_0", "quantization is only supported for F16, BF16 and F32 models"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    tmp_path: pathlib.Path, types: str, file_type: str, expected: str
) -> None:
    source = make_gguf(tmp_path / "a.gguf", types=types, blocks=1)
    code, lines = run(quantise_command(source, tmp_path / "results" / "r", file_type))
    assert (code, lines[-1]["kind"]) == (3, "unsupported")
    assert lines[-1]["error"].startswith(expected)
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind"), [(np.nan, "malformed"), (np.inf, "malformed"), (1e6, "unsupported")]
)
def test_numbers_that_cannot_be_written_are_refused_by_the_tensors_name(
    tmp_path: pathlib.Path, number: float, kind: str
) -> None:
    source = make_gguf(tmp_path / "a.gguf", types="F32", blocks=1)
    tensor = next(t for t in read_header(source).tensors if t.name == "blk.0.ffn_up.weight")
    with source.open("r+b") as file:
        file.seek(tensor.offset + 4 * 777)
        file.write(np.float32(number).tobytes())
    code, lines = run(quantise_command(source, tmp_path / "results" / "r", "Q4_K_M"))
    assert (code, lines[-1]["kind"]) == ({"malformed": 2, "unsupported": 3}[kind], kind)
    assert "'blk.0.ffn_up.weight'" in lines[-1]["error"]
    assert list((tmp_path / "results").iterdir()) == []


def large_file(path: pathlib.Path) -> pathlib.Path:
    """150 MB of zeros."""
    write_zeros(random_header("llama", "F16", vocabulary=150_000), path)
    assert path.stat().st_size > 140 << 20
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_everything_back(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    source = large_file(tmp_path / "a.gguf")
    final = tmp_path / "results" / "r"
    line = quantise_command(source, final, "Q5_K_M")
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for text in child.stdout:
            if json.loads(text).get("phase") == "write":
                child.send_signal(number)
                break
        rest = child.stdout.read().splitlines()
    assert child.returncode == 143
    assert json.loads(rest[-1])["kind"] == "cancelled"
    assert list(final.parent.iterdir()) == []


def test_memory_does_not_grow_with_the_model(tmp_path: pathlib.Path) -> None:
    source = large_file(tmp_path / "a.gguf")
    line = quantise_command(source, tmp_path / "r", "Q4_0")
    start = peak = 0
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        process = psutil.Process(child.pid)
        for text in child.stdout:
            if json.loads(text).get("phase") == "write":
                held = process.memory_info().rss
                start, peak = start or held, max(peak, held)
    assert child.returncode == 0
    assert peak - start < 80 << 20


def test_the_types_on_offer_are_those_that_can_be_written() -> None:
    assert set(QUANTISED_TYPES) == set(FILE_TYPES)
