"""Which towers are planned, and what an inspection says of those that are not."""

from __future__ import annotations

import pathlib
from typing import Any

import onnx
import pytest

from converters.artifact import GRAPH_FILE
from converters.errors import Unsupported
from converters.gguf import read_header
from converters.inspector import describe
from converters.vision_artifact import read_vision
from converters.vision_plan import assess_vision, plan_vision
from tests.converters.headers import header
from tests.converters.test_projectors import projector, projector_shapes, tower_shapes
from tests.models.random_vision import make_projector
from tests.parity.vision_onnx import converted_tower

RUNTIMES = {"onnx", "onnx-cuda", "mlx"}


def clip(projector: str, **keys: Any) -> dict[str, Any]:
    return {"clip.has_vision_encoder": True, "clip.projector_type": projector} | keys


def test_a_kind_that_is_not_known_is_refused_by_name_for_every_runtime() -> None:
    file = header("clip", {"v.class_embd": (8,)}, metadata=clip("resampler"))
    found = describe(file, "0" * 64)
    assert found.projector_type == "resampler"
    reason = "the projector type 'resampler' is not supported yet"
    assert found.vision_refusals == dict.fromkeys(RUNTIMES, reason)
    assert not found.vision_estimates


def test_a_file_without_a_tower_says_nothing_of_one() -> None:
    found = assess_vision(header())
    assert not found.refusals and not found.estimates and not found.projector_type


def test_a_tensor_without_a_role_is_refused_and_ears_are_left_out() -> None:
    shapes = tower_shapes() | projector_shapes("gemma3")
    with pytest.raises(Unsupported, match=r"'v\.blk\.0\.extra' has no place in gemma3"):
        plan_vision(projector("gemma3", shapes | {"v.blk.0.extra": (4,)}), "onnx-cpu")
    heard = plan_vision(projector("gemma3", shapes | {"a.conv1d.1.weight": (4,)}), "onnx-cpu")
    assert heard.skipped == ("a.conv1d.1.weight",)


@pytest.mark.parametrize("kind", ["gemma3", "mlp", "idefics3", "internvl"])
@pytest.mark.parametrize("target", ["onnx-cpu", "onnx-cuda"])
@pytest.mark.parametrize("types", ["F16", "BF16", "Q8_0"])
def test_the_artifact_is_what_was_estimated(
    tmp_path: pathlib.Path, kind: str, target: str, types: str
) -> None:
    path = make_projector(tmp_path / "mmproj.gguf", kind, types=types)
    header = read_header(path)
    planned = plan_vision(header, target)
    folder = converted_tower(path, target)
    artifact = read_vision(folder)
    assert artifact.file_bytes == sum(each.stat().st_size for each in folder.iterdir())
    assert 0.5 * planned.artifact_bytes < artifact.file_bytes <= planned.artifact_bytes
    assert artifact.form.projector == kind and artifact.inputs == ("patches",)
    names = {record.name for record in artifact.tensors}
    assert names | set(artifact.skipped_tensors) == {tensor.name for tensor in header.tensors}
    assert bool(artifact.skipped_tensors) == (kind == "mlp")
    is_exact = all(record.exactness == "exact" for record in artifact.tensors)
    assert is_exact == (target == "onnx-cpu")
    graph = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    half = onnx.TensorProto.FLOAT16
    kept = {weight.data_type for weight in graph.graph.initializer if len(weight.dims) == 2}
    if target == "onnx-cpu" and types == "BF16":
        assert onnx.TensorProto.BFLOAT16 in kept
    if target == "onnx-cuda":
        assert half in kept and onnx.TensorProto.FLOAT not in kept


def test_every_runtime_is_assessed(tmp_path: pathlib.Path) -> None:
    path = make_projector(tmp_path / "mmproj.gguf", "mlp", types="F16")
    found = describe(read_header(path), "0" * 64)
    assert found.kind == "projector" and found.projector_type == "mlp"
    for runtime in ("onnx", "onnx-cuda"):
        assert found.vision_estimates[runtime] > 0
        assert found.vision_memory[runtime] > 0
    assert set(found.vision_estimates) | set(found.vision_refusals) == RUNTIMES
