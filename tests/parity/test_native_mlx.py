"""A folder in MLX's own format beside mlx-lm on the folder itself: the same arrays, the same ids."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import httpx
import mlx.core as mx
import numpy as np
import pytest

from converters.artifact import MADE_GGUF, read_artifact
from converters.convert import Request, convert
from converters.errors import ConversionError, Unsupported
from converters.gguf import read_header
from converters.inspector import describe
from tests.e2e.daemon_process import DaemonProcess
from tests.e2e.test_foreign import hearth
from tests.models.mlx_folder import make_mlx_folder
from tests.parity.converted import SilentProgress
from tests.parity.imported import imported_folder
from tests.parity.mlx_loop import MlxLoop

pytestmark = pytest.mark.parity


def artifact_of(folder: pathlib.Path, final: pathlib.Path) -> pathlib.Path:
    """Imported and converted for MLX."""
    imported_folder(folder, final / "imported")
    request = Request(source="0" * 64, target="mlx", final=final / "artifact")
    with (final / "imported" / MADE_GGUF).open("rb") as file:
        convert(file, request, SilentProgress())
    return final / "artifact"


def arrays_of(folder: pathlib.Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in folder.glob("model*.safetensors"):
        found |= mx.load(str(path))  # pyright: ignore[reportOperatorIssue]
    return found


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("llama", {"bits": 4, "group_size": 64}),
        ("qwen3", {"bits": 6, "group_size": 32}),
        ("gemma3", {"bits": 8, "group_size": 64}),
        ("qwen2", {"bits": 4, "group_size": 32, "mode": "mxfp4"}),
    ],
)
def test_every_array_and_every_id_is_the_same(
    tmp_path: pathlib.Path, family: str, form: dict[str, Any]
):
    folder = make_mlx_folder(tmp_path / "model", family, **form)
    artifact = artifact_of(folder, tmp_path)
    given, found = arrays_of(folder), arrays_of(artifact)
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array)
    ids = [(7 * place) % 200 + 3 for place in range(40)]
    original, ours = MlxLoop(folder), MlxLoop(artifact)
    np.testing.assert_array_equal(ours.logprobs(ids), original.logprobs(ids))
    assert ours.greedy(ids, 12) == original.greedy(ids, 12)
    described = read_artifact(artifact)
    assert described.exactness_counts() == {
        "exact": len(given), "scale-rounded": 0, "re-encoded": 0,
    }  # fmt: skip


def test_what_is_said_of_it(tmp_path: pathlib.Path):
    folder = make_mlx_folder(tmp_path / "model", "llama")
    imported_folder(folder, tmp_path / "imported")
    inspection = describe(read_header(tmp_path / "imported" / MADE_GGUF), "0" * 64)
    assert (inspection.architecture, inspection.file_type) == ("llama", "MLX 4-bit")
    dense = sum(np.prod(array.shape) for array in arrays_of(tmp_path / "model-dense").values())
    assert inspection.parameter_count == dense
    reason = "the weights are in MLX's own format, which only MLX runs"
    assert inspection.refusals == {"onnx": reason, "onnx-cuda": reason}
    assert inspection.estimates.keys() == {"mlx"}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "someone_elses"}, "MLX has no model of the type 'someone_elses' here"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ],
)
def test_refused_before_a_byte_is_written(
    tmp_path: pathlib.Path, config: dict[str, Any], what: str
):
    folder = make_mlx_folder(tmp_path / "model", "llama")
    given = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(given | config))
    with pytest.raises(ConversionError, match=what):
        imported_folder(folder, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_onnx_refuses_it_by_name(tmp_path: pathlib.Path):
    imported_folder(make_mlx_folder(tmp_path / "model", "llama"), tmp_path / "imported")
    request = Request(source="0" * 64, target="onnx-cpu", final=tmp_path / "artifact")
    with (
        (tmp_path / "imported" / MADE_GGUF).open("rb") as file,
        pytest.raises(Unsupported, match="which only MLX runs"),
    ):
        convert(file, request, SilentProgress())


def test_served_by_a_daemon_on_mlx(tmp_path: pathlib.Path):
    from tokenizers import Tokenizer

    folder = make_mlx_folder(tmp_path / "model", "qwen3")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = "A small fire in the hearth keeps the whole house"
    expected = tokenizer.decode(
        MlxLoop(folder).greedy(tokenizer.encode(prompt).ids, 6), skip_special_tokens=False
    )
    body = {"model": "mine", "prompt": prompt, "raw": True, "stream": False}
    body |= {"options": {"temperature": 0, "num_predict": 6}}
    with DaemonProcess(tmp_path / "home", HEARTH_BACKEND="mlx") as daemon:
        found = hearth(daemon, "import", str(folder), "mine")
        assert found.returncode == 0, found.stderr
        url = f"{daemon.url}/api/generate"
        answer = httpx.post(url, json=body, timeout=120, trust_env=False)
        assert answer.raise_for_status().json()["response"] == expected
