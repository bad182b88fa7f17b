"""Every architecture on MLX beside llama.cpp: plain floats, so that what differs is not the rounding.

A prompt of 48 ids in chunks, and its end id by id; windows, scaled rotations and YaRN's boundary all
lie within it. What mlx-lm's modules lack is refused by name.
"""

from __future__ import annotations

import pathlib

import numpy as np
import numpy.typing as npt
import pytest

from converters.artifact import read_artifact
from converters.errors import Unsupported
from tests.models.random_architectures import DECODERS, MIXTURES, Value
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.dequantised import dequantised
from tests.parity.mlx_loop import MlxLoop
from tests.parity.test_architectures import CONTEXT, TANH_GELU, made, prompt_ids, worst_of_top

pytestmark = pytest.mark.parity

EXACT, DEEP, OTHER_GELU = 5e-5, 3e-4, 6e-3
TOLERANCES = {
    **dict.fromkeys(TANH_GELU, OTHER_GELU),
    "deepseek2-lite": DEEP,  # 26 blocks
}
# What mlx-lm's modules lack.
REFUSED = {
    "granitehybrid-groups": "granitemoehybrid model has no mamba 2 in groups",
    "granitemoe": "granitemoe model has no shared expert without gate",
    **dict.fromkeys(
        ("arcee", "chatglm", "falcon", "falcon-40b", "hunyuan-moe"), "is not supported on MLX yet"
    ),
    "ernie4_5-moe": "ernie4_5_moe model has no bias on choosing experts",
}
# Its module sees everything: the artifact's context ends where the window does.
METADATA: dict[str, dict[str, Value]] = {"gemma2": {"gemma2.attention.sliding_window": 64}}
# Those whose tensors are turned, split, put in another order or left dense on the way.
REARRANGED = (
    "llama", "gptneox", "phi2-fused", "deepseek2", "deepseek2-joint", "deepseek2-sigmoid", "gpt-oss", "lfm2", "qwen35",
    "qwen35moe", "qwen3next", "qwen3next-early", "gemma3n", "granitehybrid", "granitehybrid-mixture",
    "nemotron_h", "nemotron_h_moe", "nemotron_h_moe-latent",
)  # fmt: skip
# Q6_K is re-encoded; so is a part of the mix, which may move by 0.1.
QUANTISED = {"Q4_0": 0.05, "Q6_K": 0.2}
Row = npt.NDArray[np.float64]


@pytest.mark.parametrize("architecture", sorted({*DECODERS, *MIXTURES} - REFUSED.keys()))
def test_logprobs_are_those_of_llama_cpp(tmp_path: pathlib.Path, architecture: str):
    path, ids = made(tmp_path, architecture, "F32", METADATA.get(architecture)), prompt_ids()
    loop = MlxLoop(converted_file(path, target="mlx"), context=CONTEXT)
    with LlamaCpp(path, context=CONTEXT) as model:
        expected, chosen = model.logprobs(ids, 700), model.greedy(ids, 6)
    tolerance = TOLERANCES.get(architecture, EXACT)
    assert worst_of_top(loop.logprobs(ids), expected) < tolerance
    assert worst_of_top(loop.logprobs(ids, decoded=8), expected) < tolerance
    assert loop.greedy(ids, len(chosen)) == chosen


@pytest.mark.parametrize(
    ("architecture", "types"),
    [(architecture, "Q4_K_M") for architecture in REARRANGED]
    + [(architecture, types) for architecture in ("deepseek2", "qwen35") for types in QUANTISED],
)
def test_codes_keep_what_they_mean(tmp_path: pathlib.Path, architecture: str, types: str):
    path, ids = made(tmp_path, architecture, types), prompt_ids()
    loop = MlxLoop(converted_file(path, target="mlx"), context=CONTEXT)
    with LlamaCpp(dequantised(path, tmp_path / "twin.gguf"), context=CONTEXT) as model:
        exact = model.logprobs(ids, 700)
    assert worst_of_top(loop.logprobs(ids, decoded=8), exact) < QUANTISED.get(types, 0.1)


def test_mxfp4_experts_are_taken_as_they_are(tmp_path: pathlib.Path):
    path, ids = made(tmp_path, "gpt-oss", "MXFP4"), prompt_ids()
    folder = converted_file(path, target="mlx")
    stacks = [each for each in read_artifact(folder).tensors if "_exps.weight" in each.name]
    assert {(each.exactness, each.form) for each in stacks} == {
        ("exact", "mxfp4 4-bit float4 of 32")
    }
    with LlamaCpp(dequantised(path, tmp_path / "twin.gguf"), context=CONTEXT) as model:
        exact = model.logprobs(ids, 700)
    assert worst_of_top(MlxLoop(folder, context=CONTEXT).logprobs(ids), exact) < 0.01


def test_a_stack_of_gates_and_ups_is_taken_apart(tmp_path: pathlib.Path):
    """Newer files hold both in one tensor."""
    path, ids = made(tmp_path, "qwen35moe-fused", "Q4_0"), prompt_ids()
    loop = MlxLoop(converted_file(path, target="mlx"), context=CONTEXT)
    with LlamaCpp(dequantised(path, tmp_path / "twin.gguf"), context=CONTEXT) as model:
        assert worst_of_top(loop.logprobs(ids), model.logprobs(ids, 700)) < 0.05


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_a_module_lacks_is_refused_before_a_byte_is_written(
    tmp_path: pathlib.Path, architecture: str
):
    with pytest.raises(Unsupported, match=REFUSED[architecture]):
        converted_file(made(tmp_path, architecture, "F32"), target="mlx")
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]
