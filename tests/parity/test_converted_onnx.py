"""Converted models beside llama.cpp on the same GGUF, by the smallest loop that can run them.

llama.cpp and the fast graph both round activations to 8 bits where weights are quantised, in blocks
of their own; so the fast graph may be as far from llama.cpp as llama.cpp is from the exact numbers.
The exact numbers are those of the F32 twin, and the precise graph must give them.
"""

from __future__ import annotations

import pathlib

import numpy as np
import numpy.typing as npt
import pytest

from tests.models.random_architectures import Value
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.dequantised import dequantised
from tests.parity.onnx_loop import OnnxLoop

pytestmark = pytest.mark.parity

FLOATS = ("F32", "F16", "BF16")
QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
COUNT = 8
Row = npt.NDArray[np.float64]


def prompt_ids(vocabulary: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(5).integers(300, vocabulary, 48)]


def reference(path: pathlib.Path, ids: list[int], vocabulary: int) -> tuple[Row, list[int]]:
    """Log-probabilities after the prompt and the greedy continuation."""
    with LlamaCpp(path) as model:
        return model.logprobs(ids, vocabulary), model.greedy(ids, COUNT)


def worst_of_top(found: Row, expected: Row, count: int = 5) -> float:
    top = np.argsort(-expected)[:count]
    return float(np.abs(found - expected)[top].max())


def rms(found: Row, expected: Row) -> float:
    return float(np.sqrt(np.square(found - expected).mean()))


@pytest.mark.parametrize("types", FLOATS + QUANTISED)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_precise_graph_gives_the_exact_numbers(
    tmp_path: pathlib.Path, architecture: str, types: str
):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types=types)
    folder = converted_file(path, precise=True)
    vocabulary = OnnxLoop(folder).artifact.vocabulary
    ids = prompt_ids(vocabulary)
    exact, chosen = reference(dequantised(path, tmp_path / "twin.gguf"), ids, vocabulary)
    assert worst_of_top(OnnxLoop(folder).logprobs(ids), exact) < 5e-5
    assert OnnxLoop(folder).greedy(ids, len(chosen)) == chosen


@pytest.mark.parametrize("types", QUANTISED)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_fast_graph_is_as_near_to_them_as_llama_cpp(
    tmp_path: pathlib.Path, architecture: str, types: str
):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types=types)
    loop = OnnxLoop(converted_file(path))
    vocabulary = loop.artifact.vocabulary
    ids = prompt_ids(vocabulary)
    exact, _ = reference(dequantised(path, tmp_path / "twin.gguf"), ids, vocabulary)
    theirs, _ = reference(path, ids, vocabulary)
    found = loop.logprobs(ids)
    assert rms(found, exact) < 1.4 * rms(theirs, exact)
    assert worst_of_top(found, theirs) < 0.25


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
    folder = converted_file(path)
    vocabulary = OnnxLoop(folder).artifact.vocabulary
    ids = prompt_ids(vocabulary)
    expected, chosen = reference(path, ids, vocabulary)
    assert worst_of_top(OnnxLoop(folder).logprobs(ids), expected) < 5e-5
    assert OnnxLoop(folder).greedy(ids, len(chosen)) == chosen


@pytest.mark.parametrize("types", ["Q8_0", "Q6_K", "Q4_K"])
def test_a_tied_table_serves_both_ends(tmp_path: pathlib.Path, types: str):
    path = make_gguf(tmp_path / "model.gguf", architecture="llama3", types=types)
    ids = prompt_ids(700)
    exact, _ = reference(dequantised(path, tmp_path / "twin.gguf"), ids, 700)
    precise = OnnxLoop(converted_file(path, precise=True))
    assert worst_of_top(precise.logprobs(ids), exact) < 5e-5
    fast = OnnxLoop(converted_file(path))
    assert worst_of_top(fast.logprobs(ids), exact) < 0.3


def test_a_mix_keeps_every_tensor_exact(tmp_path: pathlib.Path):
    path = make_gguf(tmp_path / "model.gguf", types="Q4_K_M", blocks=4)
    artifact = OnnxLoop(converted_file(path)).artifact
    kinds = {record.source_type for record in artifact.tensors}
    assert kinds == {"F32", "Q4_K", "Q6_K"}
    assert artifact.exactness_counts() == {
        "exact": len(artifact.tensors),
        "scale-rounded": 0,
        "re-encoded": 0,
    }
