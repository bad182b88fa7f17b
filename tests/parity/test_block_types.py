"""Every block type beyond the common ones, through both targets, beside llama.cpp.

The exact numbers are those of the F32 twin: the precise ONNX graph must give them, the fast one must
be as near to them as llama.cpp with its own rounding of activations; MLX in fp32 may differ by the
rounding of 16-bit scales, or, where groups of 16 had to become groups of 32, by a stated amount.
"""

from __future__ import annotations

import pathlib

import pytest

from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file
from tests.parity.dequantised import dequantised
from tests.parity.mlx_loop import MlxLoop
from tests.parity.onnx_loop import OnnxLoop
from tests.parity.test_converted_onnx import prompt_ids, reference, rms, worst_of_top

pytestmark = pytest.mark.parity

# Type → how far MLX may move the log-probabilities of the best five.
TYPES = {
    "IQ4_NL": 0.01, "IQ4_XS": 0.01, "IQ3_S": 0.01, "IQ3_XXS": 0.01, "IQ2_XXS": 0.01, "IQ1_S": 0.01,
    "TQ1_0": 0.01, "TQ2_0": 0.01, "MXFP4": 0.01, "NVFP4": 0.01,
    "Q6_K": 0.05, "Q2_K": 0.8, "IQ2_XS": 0.8, "IQ2_S": 0.8, "IQ1_M": 0.8,
}  # fmt: skip


@pytest.mark.parametrize("types", TYPES)
def test_both_targets_mean_what_the_file_means(tmp_path: pathlib.Path, types: str):
    path = make_gguf(tmp_path / "model.gguf", types=types, blocks=1, feed_forward=256)
    precise = OnnxLoop(converted_file(path, precise=True))
    vocabulary = precise.artifact.vocabulary
    ids = prompt_ids(vocabulary)
    exact, _ = reference(dequantised(path, tmp_path / "twin.gguf"), ids, vocabulary)
    theirs, _ = reference(path, ids, vocabulary)
    assert worst_of_top(precise.logprobs(ids), exact) < 5e-5
    fast = OnnxLoop(converted_file(path)).logprobs(ids)
    assert rms(fast, exact) < 1.4 * rms(theirs, exact)
    mlx = MlxLoop(converted_file(path, target="mlx")).logprobs(ids)
    assert worst_of_top(mlx, exact) < TYPES[types]
