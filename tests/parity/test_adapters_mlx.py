"""LoRA adapters on the MLX target beside llama.cpp with the same adapter on the same GGUF.

The F32 twin with the adapter says exactly what is meant. Every adapter here changes the answer, so
that one which is ignored cannot pass.
"""

from __future__ import annotations

import pathlib

import mlx.core as mx
import numpy as np
import pytest

from backends.mlx.adapter import attach
from converters.adapters.convert import plan_adapter
from converters.artifact import MLX_ADAPTER_FILE
from converters.errors import Unsupported
from converters.gguf import read_header
from tests.models.random_adapter import ALL_LINEARS, make_adapter, random_matrices
from tests.models.random_gguf import make_gguf
from tests.parity.converted import adapted_file, converted_file
from tests.parity.dequantised import dequantised
from tests.parity.mlx_loop import MlxLoop
from tests.parity.test_adapters_onnx import LEAST_EFFECT, VOCABULARY, reference
from tests.parity.test_architectures import TABLED_GELU
from tests.parity.test_converted_mlx import COUNT
from tests.parity.test_converted_onnx import Row, prompt_ids, worst_of_top

pytestmark = pytest.mark.parity


class Adapted:
    """One base with one adapter, converted."""

    def __init__(self, path: pathlib.Path, adapter: pathlib.Path) -> None:
        self.folder = converted_file(path, target="mlx")
        self.adapter = adapted_file(adapter, path, self.folder, target="mlx")

    def loop(self) -> MlxLoop:
        loop = MlxLoop(self.folder)
        arrays = mx.load(str(self.adapter / MLX_ADAPTER_FILE))
        assert isinstance(arrays, dict)
        attach(loop.model, arrays)
        return loop

    def logprobs(self) -> Row:
        return self.loop().logprobs(prompt_ids(VOCABULARY))

    def effect(self) -> float:
        plain = MlxLoop(self.folder).logprobs(prompt_ids(VOCABULARY))
        return worst_of_top(plain, self.logprobs())


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", rf"{ALL_LINEARS}|output"),
        ("llama", r"attn_(q|k)"),
        ("qwen2", ALL_LINEARS),
        ("qwen3", ALL_LINEARS),
        ("phi4", r"attn_qkv|ffn_up|ffn_down"),
        ("gemma3", ALL_LINEARS),
        ("command-r", ALL_LINEARS),
        ("granitehybrid", rf"{ALL_LINEARS}|ssm_(in|out)"),
        ("nemotron_h", rf"{ALL_LINEARS}|ssm_(in|out)"),
        ("qwen35", rf"{ALL_LINEARS}|attn_gate|ssm_(alpha|beta|out)"),
    ],
)
def test_in_floats_the_numbers_are_llama_cpps(
    tmp_path: pathlib.Path, architecture: str, targets: str
):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types="F32")
    matrices = random_matrices(path, targets=targets, std=0.2)
    adapter = make_adapter(tmp_path / "lora.gguf", path, matrices)
    expected, chosen = reference(path, adapter)
    adapted = Adapted(path, adapter)
    tolerance = TABLED_GELU if architecture == "gemma3" else 1e-4
    assert worst_of_top(adapted.logprobs(), expected) < tolerance
    assert adapted.loop().greedy(prompt_ids(VOCABULARY), COUNT) == chosen
    assert adapted.effect() > 50 * tolerance


@pytest.mark.parametrize("types", ["Q4_K", "Q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_over_quantised_weights(tmp_path: pathlib.Path, architecture: str, types: str):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types=types)
    adapter = make_adapter(tmp_path / "lora.gguf", path)
    exact, chosen = reference(dequantised(path, tmp_path / "twin.gguf"), adapter)
    adapted = Adapted(path, adapter)
    # The weights' scales are rounded to fp16, and the adapter makes more of that.
    assert worst_of_top(adapted.logprobs(), exact) < 2e-2
    assert adapted.loop().greedy(prompt_ids(VOCABULARY), COUNT) == chosen
    assert adapted.effect() > LEAST_EFFECT


def test_a_module_of_several_matrices_is_refused(tmp_path: pathlib.Path):
    """Where a target joins what the file has apart, no pair of small matrices says the same."""
    path = make_gguf(tmp_path / "model.gguf", architecture="deepseek2", types="F32")
    header = read_header(path)
    name = next(t.name for t in header.tensors if t.name.endswith("attn_k_b.weight"))
    shape = next(t.shape for t in header.tensors if t.name == name)
    rank = np.zeros((*shape[:-2], 2, shape[-1]), np.float32), np.zeros((*shape[:-1], 2), np.float32)
    adapter = make_adapter(tmp_path / "lora.gguf", path, {name: rank})
    with pytest.raises(Unsupported, match="latent attention's stacks"):
        plan_adapter(read_header(adapter), header, "mlx")
