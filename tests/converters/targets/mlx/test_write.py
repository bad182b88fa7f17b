"""MLX artifacts as a folder sees them: whole or absent, what the artifact says, read back by mlx-lm."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from converters.artifact import MLX_CONFIG_FILE, MLX_WEIGHTS_FILE, TOKENIZER_FILE, read_artifact
from converters.gguf import read_header
from converters.plan import plan
from converters.targets.mlx import weights
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted, converted_file


def test_the_command_line_makes_one(tmp_path: pathlib.Path) -> None:
    """Confined as it is in service."""
    source = make_gguf(tmp_path / "model.gguf", types="Q4_K_M")
    final = tmp_path / "artifacts" / "mlx-f1"
    command = [sys.executable, "-m", "converters", "convert", "--target", "mlx"]
    command += ["--input", str(source), "--source", "0f" * 32, "--output", str(final)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    sizes = {path.name: path.stat().st_size for path in final.iterdir()}
    assert last == {"done": True, "artifact_bytes": sum(sizes.values())}
    assert {MLX_CONFIG_FILE, MLX_WEIGHTS_FILE, TOKENIZER_FILE} < sizes.keys()
    planned = plan(read_header(source), "mlx")
    assert sizes[MLX_WEIGHTS_FILE] == planned.layout.weights_bytes
    assert sum(sizes.values()) <= planned.artifact_bytes + 4096


def test_the_artifact_states_what_became_of_each_tensor(tmp_path: pathlib.Path) -> None:
    source = make_gguf(tmp_path / "model.gguf", types="Q4_K_M", blocks=4)
    artifact = read_artifact(converted_file(source, target="mlx"))
    assert artifact.onnx is None and artifact.rope["global"]
    planned = plan(read_header(source), "mlx")
    assert artifact.resident_bytes["metal"] == planned.resident_bytes
    # MLX's CPU build widens what has 16 bits; codes stay as they are.
    assert planned.resident_bytes < artifact.resident_bytes["cpu"] < 2 * planned.resident_bytes
    records = {record.name: record for record in artifact.tensors}
    assert set(records) == {tensor.name for tensor in read_header(source).tensors}
    head = records["output.weight"]
    assert (head.source_type, head.exactness) == ("Q6_K", "re-encoded")
    assert 0 < head.rms_error < head.max_error < 0.01
    gate = records["blk.0.ffn_gate.weight"]
    assert (gate.exactness, gate.form) == ("scale-rounded", "affine 4-bit codes of 32")
    assert records["blk.0.attn_norm.weight"].form == "f16"


def test_slices_do_not_show(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are turned whole however few rows go at once."""
    source = make_gguf(tmp_path / "model.gguf", types="Q6_K")
    whole = converted_file(source, target="mlx")
    kept = (whole / MLX_WEIGHTS_FILE).read_bytes()
    whole.rename(tmp_path / "whole")
    monkeypatch.setattr(weights, "SLICE_ELEMENTS", 256 * 3)
    assert (converted_file(source, target="mlx") / MLX_WEIGHTS_FILE).read_bytes() == kept


def test_mlx_reads_every_array_with_its_type(tmp_path: pathlib.Path) -> None:
    folder = converted(tmp_path, target="mlx", types="Q8_0", architecture="qwen2")
    arrays = mx.load(str(folder / MLX_WEIGHTS_FILE))
    assert isinstance(arrays, dict)
    types = {name.rsplit(".", 1)[1]: array.dtype for name, array in arrays.items()}
    assert types["scales"] == types["biases"] == types["bias"] == mx.float16
    assert arrays["lm_head.weight"].dtype == mx.uint32
    norm = arrays["model.norm.weight"]
    assert norm.dtype == mx.float16 and 0.5 < float(np.array(norm).mean()) < 1.5
    config = json.loads((folder / MLX_CONFIG_FILE).read_bytes())
    assert config["model_type"] == "qwen2" and config["torch_dtype"] == "float16"
