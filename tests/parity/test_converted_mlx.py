"""Models converted for MLX beside llama.cpp, run by mlx-lm itself.

The F32 twin says exactly what a quantised file means. Computed in fp32, the artifact may differ from
it only by what the conversion rounded; in its own fp16 by what that type rounds too.
"""

from __future__ import annotations

import pathlib

import pytest

from tests.models.random_architectures import Value
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file
from tests.parity.dequantised import dequantised
from tests.parity.mlx_loop import MlxLoop
from tests.parity.test_converted_onnx import (
    COUNT,
    FLOATS,
    QUANTISED,
    prompt_ids,
    reference,
    rms,
    worst_of_top,
)

pytestmark = pytest.mark.parity

# Codes kept: only scales, biases, norms and F16 matrices are rounded to fp16.
KEPT = (*FLOATS, *(name for name in QUANTISED if name not in {"Q2_K", "Q6_K"}))


def parity(path: pathlib.Path, twin: pathlib.Path | None = None) -> tuple[float, bool]:
    """(worst difference among llama.cpp's top 5, greedy continuations equal), in fp32."""
    loop = MlxLoop(converted_file(path, target="mlx"))
    ids = prompt_ids(loop.vocabulary)
    expected, chosen = reference(twin or path, ids, loop.vocabulary)
    worst = worst_of_top(loop.logprobs(ids), expected)
    return worst, loop.greedy(ids, COUNT) == chosen


@pytest.mark.parametrize("types", KEPT)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_kept_codes_give_the_exact_numbers(tmp_path: pathlib.Path, architecture: str, types: str):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types=types)
    worst, is_equal = parity(path, dequantised(path, tmp_path / "twin.gguf"))
    assert worst < (2e-5 if types == "F32" else 1e-2)
    assert is_equal


@pytest.mark.parametrize("types", ["Q4_K", "Q6_K", "Q8_0"])
def test_in_its_own_type_it_is_nearer_than_llama_cpp(tmp_path: pathlib.Path, types: str):
    """llama.cpp rounds activations to 8 bits, fp16 keeps 11."""
    path = make_gguf(tmp_path / "model.gguf", types=types)
    loop = MlxLoop(converted_file(path, target="mlx"), exact=False)
    ids = prompt_ids(loop.vocabulary)
    exact, _ = reference(dequantised(path, tmp_path / "twin.gguf"), ids, loop.vocabulary)
    theirs, _ = reference(path, ids, loop.vocabulary)
    assert rms(loop.logprobs(ids), exact) < rms(theirs, exact)


@pytest.mark.parametrize(
    ("architecture", "metadata"),
    [
        ("llama3", {}),
        ("mistral", {}),
        ("qwen2-tied", {}),
        ("llama", {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
        (
            "qwen2",
            {
                "qwen2.rope.scaling.type": "yarn",
                "qwen2.rope.scaling.factor": 4.0,
                "qwen2.rope.scaling.original_context_length": 512,
            },
        ),
    ],
)
def test_variants_in_plain_floats(
    tmp_path: pathlib.Path, architecture: str, metadata: dict[str, Value]
):
    path = make_gguf(
        tmp_path / "model.gguf", architecture=architecture, types="F32", metadata=metadata
    )
    worst, is_equal = parity(path)
    assert worst < 5e-5
    assert is_equal


def test_a_mix_gives_every_tensor_its_own_form(tmp_path: pathlib.Path):
    path = make_gguf(tmp_path / "model.gguf", types="Q4_K_M", blocks=4)
    worst, _ = parity(path, dequantised(path, tmp_path / "twin.gguf"))
    assert worst < 0.05
