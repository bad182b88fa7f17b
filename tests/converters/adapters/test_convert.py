"""Adapters on disk: the numbers that were given, scaled; the base untouched; nothing half."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest

from converters.adapters.convert import AdapterRequest, convert_adapter
from converters.artifact import ADAPTER_WEIGHTS_FILE, GRAPH_FILE, WEIGHTS_FILE, read_adapter
from converters.errors import MalformedFile, Unsupported
from tests.converters.test_main import command, run
from tests.models.random_adapter import Matrices, make_adapter, random_matrices
from tests.models.random_gguf import make_gguf
from tests.parity.converted import SilentProgress, adapted_file, converted_file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_gguf(tmp_path_factory.mktemp("base") / "model.gguf", types="Q4_K_M")


@pytest.fixture(scope="module")
def base_folder(base: pathlib.Path) -> pathlib.Path:
    return converted_file(base)


@pytest.fixture(scope="module")
def matrices(base: pathlib.Path) -> Matrices:
    return random_matrices(base, targets=r"attn_(q|v|output)|output", rank=3)


@pytest.fixture
def adapter(tmp_path: pathlib.Path, base: pathlib.Path, matrices: Matrices) -> pathlib.Path:
    return make_adapter(tmp_path / "lora.gguf", base, matrices, alpha=6.0)


def convert(
    adapter: pathlib.Path, base: pathlib.Path, base_folder: pathlib.Path, final: pathlib.Path
) -> int:
    request = AdapterRequest(
        source="ad" * 32, base="5e" * 32, base_folder=base_folder, target="onnx-cpu", final=final
    )
    with adapter.open("rb") as file, base.open("rb") as base_file:
        return convert_adapter(file, base_file, request, SilentProgress())


def test_the_arrays_are_the_given_matrices(
    base: pathlib.Path, base_folder: pathlib.Path, adapter: pathlib.Path, matrices: Matrices
):
    before = {path: path.stat().st_mtime_ns for path in base_folder.iterdir()}
    folder = adapted_file(adapter, base, base_folder)
    described = read_adapter(folder, base_folder)
    assert (described.base, described.source, described.rank) == ("5e" * 32, "ad" * 32, 3)
    assert set(described.targets) == set(matrices)
    assert described.file_bytes == sum(path.stat().st_size for path in folder.iterdir())
    stored = np.fromfile(folder / ADAPTER_WEIGHTS_FILE, np.uint8)

    def array(name: str) -> np.ndarray:
        place = described.arrays[name]
        numbers = stored[place.offset :].view("<f4")[: np.prod(place.shape)]
        return numbers.reshape(place.shape)

    # In a Q4_K_M file v may have another type than q and k: then nothing is packed.
    a, b = matrices["blk.0.attn_q.weight"]
    name = "blk.0.attn_qkv" if "blk.0.attn_qkv.lora_up" in described.arrays else "blk.0.attn_q"
    assert (array(f"{name}.lora_down")[:3] == a).all()
    assert (array(f"{name}.lora_up")[:256, :3] == b * np.float32(2)).all()
    a, b = matrices["output.weight"]
    assert (array("output.lora_down") == a).all()
    assert (array("output.lora_up") == b * np.float32(2)).all()
    assert {path: path.stat().st_mtime_ns for path in base_folder.iterdir()} == before


def test_the_graph_reads_the_bases_own_weights(
    base: pathlib.Path, base_folder: pathlib.Path, adapter: pathlib.Path
):
    folder = adapted_file(adapter, base, base_folder)
    assert not (folder / WEIGHTS_FILE).exists()
    graph = onnx.load(folder / GRAPH_FILE, load_external_data=False).graph
    locations = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {WEIGHTS_FILE, ADAPTER_WEIGHTS_FILE}
    plain = onnx.load(base_folder / GRAPH_FILE, load_external_data=False).graph
    assert len(graph.node) == len(plain.node) + 3 * sum(
        name.endswith("lora_up") for name in read_adapter(folder, base_folder).arrays
    )


def test_weights_that_lie_elsewhere_are_refused(
    base: pathlib.Path, adapter: pathlib.Path, tmp_path: pathlib.Path
):
    """As of an artifact that another version wrote."""
    other = converted_file(make_gguf(tmp_path / "other.gguf", types="Q8_0"))
    final = tmp_path / "out" / "adapter"
    final.parent.mkdir()
    with pytest.raises(Unsupported, match="made by another version"):
        convert(adapter, base, other, final)
    assert list(final.parent.iterdir()) == []


def test_numbers_that_are_not_finite_leave_nothing(
    base: pathlib.Path, base_folder: pathlib.Path, tmp_path: pathlib.Path, matrices: Matrices
):
    final = tmp_path / "out" / "adapter"
    final.parent.mkdir()
    a, b = matrices["blk.0.attn_q.weight"]
    huge, bad = np.full_like(b, 1e38), np.full_like(a, np.nan)
    for pair, says in (((bad, b), "lora_a' holds"), ((a, huge), "times 32.0")):
        path = make_adapter(tmp_path / "x.gguf", base, {"blk.0.attn_q.weight": pair}, alpha=96.0)
        with pytest.raises(MalformedFile, match=says):
            convert(path, base, base_folder, final)
        assert list(final.parent.iterdir()) == []


def test_the_commands(
    base: pathlib.Path, base_folder: pathlib.Path, adapter: pathlib.Path, tmp_path: pathlib.Path
):
    fits = ("--base", base, "--target", "onnx-cpu")
    assert run(command("match", "--input", adapter, *fits)) == (0, [{"done": True}])
    other = make_adapter(tmp_path / "other.gguf", base, architecture="qwen2")
    code, lines = run(command("match", "--input", other, *fits))
    assert (code, lines[-1]["kind"], "'qwen2'" in lines[-1]["error"]) == (2, "malformed", True)
    final = tmp_path / "artifacts" / "ad" / "adapter"
    sources = ("--source", "ad" * 32, "--base-source", "5e" * 32, "--base-folder", base_folder)
    line = command("adapt", "--input", adapter, "--output", final, *fits, *sources)
    code, lines = run(line)
    assert (code, lines[-1]["artifact_bytes"]) == (0, read_adapter(final, base_folder).file_bytes)
    assert run(line) == (0, lines[-1:])
