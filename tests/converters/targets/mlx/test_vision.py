"""Vision towers for MLX: what becomes of every tensor, and how large files and runs are."""

from __future__ import annotations

import json
import pathlib

import mlx.core as mx
import pytest

from converters.artifact import MLX_CONFIG_FILE, MLX_WEIGHTS_FILE
from converters.gguf import read_header
from converters.targets.mlx.vision import run_bytes
from converters.vision_artifact import read_vision
from converters.vision_plan import plan_vision
from tests.models.random_vision import make_projector
from tests.models.random_vision_towers import TOWERS
from tests.parity.vision_onnx import converted_tower


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("types", ["F32", "F16", "Q8_0"])
def test_every_tensor_is_kept_as_it_is(tmp_path: pathlib.Path, kind: str, types: str) -> None:
    path = make_projector(tmp_path / "mmproj.gguf", kind, types=types)
    folder = converted_tower(path, "mlx")
    vision = read_vision(folder)
    with path.open("rb") as file:
        header = read_header(file)
        planned = plan_vision(header, "mlx")
    recorded = {record.name for record in vision.tensors}
    assert recorded | set(vision.skipped_tensors) == {each.name for each in header.tensors}
    lossy = [record.name for record in vision.tensors if record.exactness != "exact"]
    # fp32 matrices beside codes become fp16, as in models.
    assert all(_is_wide_matrix(vision.tensors, name) for name in lossy), lossy
    assert types == "Q8_0" or not lossy
    assert vision.resident_bytes == {
        "metal": planned.layout.weights_bytes,
        "cpu": _cpu_bytes(folder),
    }


def _is_wide_matrix(records: tuple, name: str) -> bool:
    (record,) = (each for each in records if each.name == name)
    return record.source_type == "F32" and len(record.shape) > 1 and record.max_error < 1e-3


def _cpu_bytes(folder: pathlib.Path) -> int:
    """All floats in fp32."""
    arrays = mx.load(str(folder / MLX_WEIGHTS_FILE))
    assert isinstance(arrays, dict)
    return sum(
        4 * array.size if mx.issubdtype(array.dtype, mx.floating) else array.nbytes
        for array in arrays.values()
    )


def test_bfloat16_becomes_fp16_and_what_that_costs_is_said(tmp_path: pathlib.Path) -> None:
    path = make_projector(tmp_path / "mmproj.gguf", "mlp", types="BF16")
    folder = converted_tower(path, "mlx")
    config = json.loads((folder / MLX_CONFIG_FILE).read_bytes())
    assert config["torch_dtype"] == "float16"
    # Eight bits of a mantissa fit into eleven, but for the smallest numbers.
    assert max(record.max_error for record in read_vision(folder).tensors) < 1e-7


def test_a_run_takes_what_was_planned(tmp_path: pathlib.Path) -> None:
    """The planned bytes grow with the largest image, and hold the scores of one piece."""
    sizes = []
    for kind in ("mlp", "qwen2vl"):
        path = make_projector(tmp_path / f"{kind}.gguf", kind)
        with path.open("rb") as file:
            planned = plan_vision(read_header(file), "mlx")
        assert planned.run_bytes == run_bytes(planned.tower)
        sizes.append(planned.run_bytes)
    assert sizes[1] > sizes[0] > 64 << 20
