from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from backends.onnx import backend
from backends.onnx.loading import plan_rows
from backends.types import EngineError, Load
from converters.artifact import ARTIFACT_FILE, GRAPH_FILE, WEIGHTS_FILE, Artifact
from tests.backends.onnx.tiny_artifact import write_tiny_artifact

POSITION_BYTES = 2 * 2 * 2 * 16 * 4


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write_tiny_artifact(tmp_path / "tiny", context_length=300)
    return tmp_path / "tiny"


def load(folder: pathlib.Path, **fields):
    wanted: dict[str, Any] = {"rows": 2, "context_length": 200, "threads": 1} | fields
    return backend.load(Load(request_id="l", backend="onnx", artifact=str(folder), **wanted))


def change(folder: pathlib.Path, **fields) -> None:
    path = folder / ARTIFACT_FILE
    artifact = msgspec.json.decode(path.read_bytes(), type=Artifact)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(artifact, **fields)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 200),
        ({"context_length": 9999}, 300),  # what the model was trained for
        ({"kv_bytes": 64 * POSITION_BYTES}, 64),
    ],
)
def test_context_length(folder: pathlib.Path, fields: dict, expected: int):
    assert load(folder, **fields).capabilities.context_length == expected


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"device": "cuda"}, "device"),
        ({"adapters": ("/a",)}, "load"),
        ({"adapters": ("/a", "/b")}, "unsupported"),
        ({"rows": 0}, "invalid"),
        ({"kv_bytes": 3 * POSITION_BYTES}, "memory"),
    ],
)
def test_what_cannot_be_loaded_is_named(folder: pathlib.Path, fields: dict, code: str):
    with pytest.raises(EngineError) as caught:
        load(folder, **fields)
    assert caught.value.code == code


@pytest.mark.parametrize("name", [ARTIFACT_FILE, GRAPH_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_damaged_artifact_is_a_load_error(folder: pathlib.Path, name: str, content: bytes | None):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(EngineError) as caught:
        load(folder)
    assert caught.value.code == "load"


@pytest.mark.parametrize(
    "fields",
    [{"rope": {}}, {"block_count": 3}, {"kv_heads": (2, 2, 2)}, {"onnx": None}],
)
def test_an_artifact_that_disagrees_with_its_graph_is_refused(folder: pathlib.Path, fields: dict):
    change(folder, **fields)
    with pytest.raises(EngineError) as caught:
        load(folder)
    assert caught.value.code == "load"


def test_precise_promises_no_reproducible_batches(folder: pathlib.Path):
    assert load(folder).capabilities.reproducible_batches
    assert not load(folder, precise=True).capabilities.reproducible_batches


def test_importing_the_backend_imports_no_runtime():
    code = (
        "import sys, backends.onnx, backends.scripted, backends.select;"
        "print([m for m in ('numpy', 'onnxruntime', 'onnx') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("ceiling", "budget_bytes", "expected"),
    [(4, 10_000, 4), (4, 150, 3), (4, 100, 2), (4, 10, 1), (1, 10_000, 1)],
)
def test_rows_are_as_many_as_fit_half_full(ceiling: int, budget_bytes: int, expected: int):
    assert plan_rows(ceiling, 100, budget_bytes) == expected
